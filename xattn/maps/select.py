"""Which steps, layers, heads, images and tokens a map is made of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress

from xattn.records.run import Layer, LayerFilter, Run, picks, select_layers
from xattn.text.prompt import Prompt


def kept_positions(asked: Sequence[Prompt], words: Sequence[str | int] | None) -> tuple[int, ...]:
    """Gives the token positions to keep: of the words named, or of every token of every prompt.

    Raises:
        ValueError: none of the prompts has a word; the error lists the words there are.
    """
    found: set[int] = set()
    if words is None:
        for prompt in asked:
            found.update(t.position for t in prompt.tokens)
            if prompt.is_anonymous or (prompt.clash and not prompt.tokens):
                found.update(range(prompt.length))
        if not found:  # an empty prompt: its end token is all that can be looked at
            found.add(1)
        return tuple(sorted(found))
    for word in words:
        errors = []
        for prompt in asked:
            try:
                found.update(prompt.on_axis(word))
            except ValueError as error:
                errors.append(error)
        if len(errors) == len(asked):
            raise errors[0]
    return tuple(sorted(found))


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


def head_indices(run: Run, layer: int, heads: Heads) -> list[int] | None:
    """Return the indices of the chosen heads of a layer, None for all."""
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
