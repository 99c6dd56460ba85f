"""Heat maps from recorded probabilities (Tang et al. 2023, section 3).

The heat map of a word: for each layer the mean over heads and the sum over steps of the word's
probabilities, bicubic to the latent grid, clamped at 0; then the mean over the layers and the
mean over the word's tokens.

The sum over steps is the definition's: a heat map of 50 steps is 50 times that of an average
step. Where a recording kept only the mean over its steps, the sum is that mean times the number
of steps. Where it kept only the mean over layers of one grid, that mean counts as many times as
it has members (it is clamped once, after the mean).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F

from xattn.runs import Layer, LayerFilter, Run, picks, select_layers

Steps = int | slice | Sequence[int] | None
Heads = int | Sequence[int] | None
Asked = str | int | Sequence[int]  # a word or phrase, or token positions


def all_layers(layer: Layer, latent: tuple[int, int]) -> bool:
    """Takes every layer."""
    return True


def daam_layers(layer: Layer, latent: tuple[int, int]) -> bool:
    """Takes the layers of the DAAM paper: no middle block, no grid of 1/8 of the latent."""
    coarse = any(side <= -(-whole // 8) for side, whole in zip(layer.grid, latent, strict=True))
    return not layer.middle and not coarse


DEFAULT_LAYERS: Callable[[Layer, tuple[int, int]], bool] = daam_layers
"""What heat maps are made of by default: what measured best (``python -m benchmarks``)."""

_NAMED = {"all": all_layers, "daam": daam_layers}


def token_maps(
    run: Run,
    positions: Sequence[int],
    image: int = 0,
    *,
    steps: Steps = None,
    layers: LayerFilter = None,
    heads: Heads = None,
) -> torch.Tensor:
    """Gives the heat map of each token, float32 (tokens, height, width) on the latent grid.

    Args:
        run: what was recorded.
        positions: positions of the tokens on the token axis.
        image: index of the image, in the order of ``pipe(...).images``.
        steps: which steps to sum; all that are complete by default.
        layers: names, globs, a test of a ``Layer``, "daam" or "all".
        heads: which heads to average; all by default.

    Raises:
        ValueError: something was asked for that is not in the recording.
    """
    chosen, weights = layers_of(run, layers)
    total = torch.zeros(len(positions), *run.latent)
    for layer, weight in zip(chosen, weights, strict=True):
        native = layer_maps(run, layer, positions, image, steps=steps, heads=heads)
        total += weight * to_grid(native, run.latent)
    return total


def step_token_maps(
    run: Run,
    positions: Sequence[int],
    image: int = 0,
    *,
    layers: LayerFilter = None,
    heads: Heads = None,
) -> torch.Tensor:
    """Gives each step's own heat maps, float32 (steps, tokens, height, width)."""
    need(run, "step", "maps of single steps")
    chosen, weights = layers_of(run, layers)
    total = torch.zeros(completed(run), len(positions), *run.latent)
    for layer, weight in zip(chosen, weights, strict=True):
        for step, native in enumerate(_each_step(run, layer, positions, image, None, heads)):
            total[step] += weight * to_grid(native, run.latent)
    return total


def layer_maps(
    run: Run,
    layer: int,
    positions: Sequence[int],
    image: int = 0,
    *,
    steps: Steps = None,
    heads: Heads = None,
) -> torch.Tensor:
    """Gives one layer's mean over heads and sum over steps, (tokens, h, w) on its own grid."""
    total = torch.zeros(len(positions), *run.layers[layer].grid)
    for native in _each_step(run, layer, positions, image, steps, heads):
        total += native
    return total if "step" in run.keep else total * completed(run)


def head_maps(
    run: Run, layer: int, positions: Sequence[int], image: int = 0, *, steps: Steps = None
) -> torch.Tensor:
    """Gives each head's sum over steps, (heads, tokens, h, w) on the layer's own grid."""
    need(run, "head", "maps of single heads")
    index, rows = token_index(run, positions), image_index(run, image)
    total = torch.zeros(run.layers[layer].heads, len(positions), *run.layers[layer].grid)
    for step in step_indices(run, steps):
        total += run.store.read(layer, [step])[0, rows][:, index].float()
    return total if "step" in run.keep else total * completed(run)


def step_layer_maps(
    run: Run, layer: int, positions: Sequence[int], image: int = 0, *, heads: Heads = None
) -> torch.Tensor:
    """Gives one layer's mean over heads at each step, (steps, tokens, h, w) on its own grid.

    Where the step axis was not kept there is one step: the mean.
    """
    return torch.stack(list(_each_step(run, layer, positions, image, None, heads)))


def refined(run: Run, tokens: torch.Tensor, image: int) -> torch.Tensor:
    """Lets maps flow along the image's attention to itself: what looks alike shares its heat.

    Each cell takes the mean of the map over the cells that it attends to, by the shares that
    ``Run.affinity`` has of them.

    Args:
        run: what was recorded.
        tokens: maps on the latent grid, (tokens, height, width).
        image: index of the image.

    Raises:
        ValueError: self-attention was not recorded.
    """
    if run.affinity is None:
        raise ValueError(
            "a refined map needs the image's attention to itself: record with affinity=True "
            "(on the command line, --refined)"
        )
    shares = run.affinity[image_index(run, image)].float()  # (h, w, h, w)
    grid = (shares.shape[0], shares.shape[1])
    small = tokens
    if grid != run.latent:
        small = F.interpolate(tokens[:, None], grid, mode="area")[:, 0]
    flowed = torch.einsum("ijkl,nkl->nij", shares, small)
    return flowed if grid == run.latent else to_grid(flowed, run.latent)


def to_grid(native: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Brings (..., h, w) to another grid: bicubic, clamped at 0."""
    lead = native.shape[:-2]
    flat = native.reshape(-1, 1, *native.shape[-2:])  # (maps, 1, h, w)
    sized = F.interpolate(flat, size=grid, mode="bicubic", align_corners=False)
    return sized.clamp_min(0).reshape(*lead, *grid)  # (..., height, width)


def layers_of(run: Run, wanted: LayerFilter = None) -> tuple[list[int], list[float]]:
    """Gives the indices of the layers to use, and the share of each in their mean.

    By default those of ``DEFAULT_LAYERS``; all, where a recording has none of these.

    Raises:
        ValueError: no layer fits, or one that fits was averaged with one that doesn't.
    """
    named = DEFAULT_LAYERS if wanted is None else None
    if isinstance(wanted, str):
        named = _NAMED.get(wanted)
    if named is None:
        pick = wanted
    else:
        rule = named

        def pick(layer: Layer) -> bool:
            return rule(layer, run.latent)

    try:
        chosen = select_layers(run.layers, pick)
    except ValueError:
        if named is None:
            raise
        if wanted is not None:
            grids = ", ".join(f"{x.name} ({x.grid[0]}x{x.grid[1]})" for x in run.layers)
            raise ValueError(
                f"layers={wanted!r} fits none of the layers recorded: {grids}"
            ) from None
        chosen = list(range(len(run.layers)))
    for i in chosen:
        _check_whole(run.layers[i], pick, wanted)
    weights = [float(len(run.layers[i].members)) for i in chosen]
    return chosen, [w / sum(weights) for w in weights]


def step_indices(run: Run, steps: Steps) -> list[int]:
    """Gives the indices of the chosen steps on the step axis of the store.

    Raises:
        ValueError: no such step, or the step axis was not kept.
    """
    done = completed(run)
    if "step" not in run.keep:
        if steps is not None:
            need(run, "step", f"steps={steps!r}")
        return [0]
    if steps is None:
        return list(range(done))
    if isinstance(steps, slice):
        chosen = list(range(done))[steps]
    else:
        chosen = [_within(s, done, "steps") for s in _listed(steps, "steps")]
    if not chosen:
        raise ValueError(f"steps={steps!r} picks none of the {done} steps")
    return chosen


def image_index(run: Run, image: int) -> int:
    """Gives the index of an image, counted from the end where it is negative."""
    return _within(image, len(run.rows), "image")


def token_index(run: Run, positions: Sequence[int]) -> list[int]:
    """Gives the indices of token positions on the token axis of the store."""
    where = {position: i for i, position in enumerate(run.positions)}
    missing = [p for p in positions if p not in where]
    if missing or not positions:
        kept = ", ".join(map(str, run.positions))
        raise ValueError(f"token positions {missing} were not recorded; those kept are: {kept}")
    return [where[p] for p in positions]


def kept_words(run: Run, image: int = 0) -> tuple[str, ...]:
    """Gives the words of an image's prompt whose tokens were all kept, each once."""
    prompt, kept = run.prompt(image_index(run, image)), set(run.positions)
    words: dict[str, str] = {}
    for word in prompt.words:
        with suppress(ValueError):  # a word that is a part of another's token
            if kept.issuperset(prompt.positions(word.text)):
                words.setdefault(word.text.casefold(), word.text)
    return tuple(words.values())


def word_positions(
    run: Run, word: Asked, image: int = 0, occurrence: int | None = None
) -> tuple[int, ...]:
    """Gives the token positions of a word or phrase in an image's prompt.

    Args:
        run: what was recorded.
        word: a word, a phrase, or token positions; start, end and padding too, where kept.
        image: index of the image whose prompt is meant.
        occurrence: which one of several, from 0; all of them by default.

    Raises:
        ValueError: the prompt lacks the word, or its tokens were not kept.
    """
    prompt = run.prompt(image_index(run, image))
    positions = (
        prompt.positions(word, occurrence) if isinstance(word, str) else prompt.on_axis(word)
    )
    if not set(run.positions).issuperset(positions):
        words = ", ".join(kept_words(run, image)) or "none"
        kept = ", ".join(map(str, run.positions))
        raise ValueError(
            f"word {word!r} was not recorded; the words kept are: {words} (token positions {kept})"
        )
    return positions


def completed(run: Run) -> int:
    """Gives the number of complete steps; an error where there is none."""
    if run.done < 1:
        raise ValueError("no step of this run is complete: there is nothing to show yet")
    return run.done


def need(run: Run, axis: str, what: str) -> None:
    """Raises an error where an axis was not kept, which says how to keep it."""
    if axis not in run.keep:
        kept = ", ".join(sorted(run.keep)) or "none"
        raise ValueError(
            f"{what}: the {axis} axis was averaged while recording (kept: {kept}); "
            f"record with {axis!r} in keep="
        )


def _each_step(
    run: Run, layer: int, positions: Sequence[int], image: int, steps: Steps, heads: Heads
) -> Iterator[torch.Tensor]:
    """Yields (tokens, h, w) of each step, the mean over the chosen heads.

    One step at a time, and only the chosen tokens in float32: a run can be larger than memory.
    """
    index, row = token_index(run, positions), image_index(run, image)
    chosen = _head_indices(run, layer, heads)
    for step in step_indices(run, steps):
        maps = run.store.read(layer, [step])[0, row][:, index]  # (heads, tokens, h, w)
        yield (maps if chosen is None else maps[chosen]).float().mean(0)


def _head_indices(run: Run, layer: int, heads: Heads) -> list[int] | None:
    if heads is None:
        return None
    need(run, "head", f"heads={heads!r}")
    chosen = _listed(heads, "heads")
    if not chosen:
        raise ValueError("heads=() picks no head")
    what = f"heads of {run.layers[layer].name}"
    return [_within(h, run.layers[layer].heads, what) for h in chosen]


def _check_whole(layer: Layer, pick: LayerFilter, wanted: LayerFilter) -> None:
    if len(layer.members) == 1 or pick is None or callable(pick):
        return
    parts = [Layer(name, layer.grid, layer.heads) for name in layer.members]
    if not all(picks(part, pick) for part in parts):
        raise ValueError(
            f"layers={wanted!r} picks some of the layers whose mean was recorded as {layer.name}: "
            f"record with 'layer' in keep= to tell them apart"
        )


def _listed(value: int | Sequence[int], name: str) -> list[int]:
    with suppress(TypeError):
        return [operator.index(value)]  # type: ignore[arg-type]  # a whole number, numpy's too
    with suppress(TypeError):
        return [operator.index(v) for v in value]  # type: ignore[union-attr]
    raise ValueError(f"{name}={value!r}: give an index or several, whole numbers from 0")


def _within(number: int, length: int, name: str) -> int:
    if not -length <= number < length:
        raise ValueError(f"{name}: {number} is out of range, there are {length}")
    return number % length
