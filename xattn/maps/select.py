"""The steps, layers, heads, images and tokens a map is made of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any

from xattn.records.run import Layer, LayerFilter, Run, picks, select_layers
from xattn.text.prompt import Prompt

IMAGE = "image"
"""What stands for an IP-Adapter's image prompt among words to record."""


def kept_positions(
    asked: Sequence[Prompt], words: Sequence[str | int] | None, *, adapted: bool = False
) -> tuple[int, ...]:
    """Return the token positions to keep: those of the named words, or of every prompt token.

    Args:
        asked: the prompts.
        words: the words; None for all.
        adapted: whether "image" stands for an image prompt, which has no position. Alone, it
            leaves every word; a word "image" of a prompt is kept as well.

    Raises:
        ValueError: no prompt contains the word; the error lists the words of the prompts.
    """
    if adapted and words is not None and IMAGE in words:
        others = [word for word in words if word != IMAGE]
        words = [*others, *_in_prompts(asked, IMAGE)] if others else None
    found: set[int] = set()
    if words is None:
        for prompt in asked:
            found.update(prompt.own_positions)
            if prompt.is_anonymous or (prompt.clash and not prompt.tokens):
                found.update(range(prompt.length))
        if not found:  # an empty prompt: its end token is all that can be looked at
            found.update(prompt.end for prompt in asked if prompt.end is not None)
        return tuple(sorted(found))
    for word in words:
        errors = []
        for prompt in asked:
            try:
                found.update(prompt.on_axis(word))
            except ValueError as error:
                errors.append(error)
        if len(errors) == len(asked):
            hint = "; for the tokens of an image prompt load an IP-Adapter first"
            raise type(errors[0])(f"{errors[0]}{hint}") if word == IMAGE else errors[0]
    return tuple(sorted(found))


def _in_prompts(asked: Sequence[Prompt], word: str) -> list[str]:
    """Return a word in a list, or an empty list where no prompt has it."""
    for prompt in asked:
        with suppress(ValueError):
            prompt.positions(word)
            return [word]
    return []


Steps = int | slice | Sequence[int] | None


Heads = int | Sequence[int] | Mapping[str, Sequence[int]] | None
"""An index or several, of every layer; or heads of some layers by the layers' names."""


Asked = str | int | Sequence[int]  # a word or phrase, or token positions


def all_layers(layer: Layer, latent: tuple[int, int]) -> bool:
    """Select every layer."""
    return True


def daam_layers(layer: Layer, latent: tuple[int, int]) -> bool:
    """Select the layers of the DAAM paper: no middle block, no grid of 1/8 of the latent."""
    coarse = any(side <= -(-whole // 8) for side, whole in zip(layer.grid, latent, strict=True))
    return not layer.middle and not coarse


DEFAULT_LAYERS: Callable[[Layer, tuple[int, int]], bool] = daam_layers
"""Default layers of heat maps: the choice that measured best (``python -m benchmarks``)."""


_NAMED = {"all": all_layers, "daam": daam_layers}


def _default(run: Run) -> Callable[[Layer, tuple[int, int]], bool]:
    globs = run.map_layers
    if globs is None:
        return DEFAULT_LAYERS

    def named(layer: Layer, latent: tuple[int, int]) -> bool:
        parts = [Layer(name, layer.grid, layer.heads) for name in layer.members]
        return all(picks(part, globs) for part in parts)

    return named


def layers_of(run: Run, wanted: LayerFilter = None) -> tuple[list[int], list[float]]:
    """Return the indices of the layers to use, and the weight of each in their mean.

    By default those that the run's family names, else those of ``DEFAULT_LAYERS``; all, where a
    recording has none of these.

    Raises:
        ValueError: no layer matches, or a matching layer was averaged with one that does not.
    """
    named = _default(run) if wanted is None else None
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
                f"layers={wanted!r} does not match any layer; the layers are: {grids}"
            ) from None
        chosen = list(range(len(run.layers)))
    for i in chosen:
        _check_whole(run.layers[i], pick, wanted)
    weights = [float(len(run.layers[i].members)) for i in chosen]
    return chosen, [w / sum(weights) for w in weights]


def step_indices(run: Run, steps: Steps) -> list[int]:
    """Return the indices of the chosen steps on the store's step axis.

    Raises:
        ValueError: a step does not exist, or the step axis was not kept.
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
        raise ValueError(f"steps={steps!r} does not select any of the {done} steps")
    return chosen


def image_index(run: Run, image: Any) -> int:
    """Return the index of an image, counted from the end if negative.

    Raises:
        ValueError: ``image`` is not an index of the run's images.
    """
    images = len(run.prompt_of)
    if isinstance(image, bool) or not isinstance(image, Integral):
        kind = "a picture" if hasattr(image, "convert") else repr(image)
        raise ValueError(
            f"image= must be the index of an image, 0 to {images - 1}, got {kind}; pass a picture "
            "to draw on as on= to what draws: overlay(on=picture), grid(on=picture)"
        )
    return _within(int(image), images, "image")


def frames_of(run: Run, video: int) -> range:
    """Return the indices of a video's frames among the run's images.

    Raises:
        ValueError: ``video`` is not an index of the run's videos.
    """
    first = run.frames * _within(video, len(run.prompt_of) // run.frames, "video")
    return range(first, first + run.frames)


def token_index(run: Run, positions: Sequence[int]) -> list[int]:
    """Return the indices of token positions on the store's token axis."""
    where = {position: i for i, position in enumerate(run.positions)}
    missing = [p for p in positions if p not in where]
    if missing or not positions:
        kept = ", ".join(map(str, run.positions))
        raise ValueError(f"token positions {missing} were not recorded; those kept are: {kept}")
    return [where[p] for p in positions]


def kept_words(run: Run, image: int = 0) -> tuple[str, ...]:
    """Return the words of an image's prompt with all tokens kept, each once."""
    prompt, kept = run.prompt(image_index(run, image)), set(run.positions)
    words: dict[str, str] = {}
    for word in prompt.words:
        with suppress(ValueError):  # a word that is only part of a token
            if kept.issuperset(prompt.positions(word.text)):
                words.setdefault(word.text.casefold(), word.text)
    return tuple(words.values())


def word_positions(
    run: Run, word: Asked, image: int = 0, occurrence: int | None = None
) -> tuple[int, ...]:
    """Return the token positions of a word or phrase in an image's prompt.

    Args:
        run: the recorded run.
        word: a word, a phrase, or token positions (start, end and padding too, if kept).
        image: index of the image; its prompt is searched.
        occurrence: which occurrence, from 0; all of them by default.

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
    """Return the number of complete steps; raise ValueError if there are none."""
    if run.done < 1:
        raise ValueError("no step of this run is complete: there is nothing to show yet")
    return run.done


def need(run: Run, axis: str, what: str) -> None:
    """Raise ValueError if an axis was not kept; the error explains how to keep it."""
    if axis not in run.keep:
        kept = ", ".join(sorted(run.keep)) or "none"
        raise ValueError(
            f"{what}: the {axis} axis was averaged while recording (kept: {kept}); "
            f"record with {axis!r} in keep="
        )


def layers_with(run: Run, wanted: LayerFilter, heads: Heads) -> tuple[list[int], list[float]]:
    """Return the layers to use and their weights, where heads may name layers of their own.

    A layer counts by the share of its heads that are named: all heads of the default layers make
    the default map.

    Raises:
        ValueError: heads names a layer that is not recorded, or none of those wanted.
    """
    if not isinstance(heads, Mapping):
        return layers_of(run, wanted)
    names = [name for name, several in heads.items() if len(several)]
    for name in names:
        if name not in {layer.name for layer in run.layers}:
            there = ", ".join(layer.name for layer in run.layers)
            raise ValueError(f"heads: layer {name!r} was not recorded; the layers are: {there}")
    chosen, weights = layers_of(run, names if wanted is None else wanted)
    shares = [
        weight * len(set(heads.get(run.layers[n].name, ()))) / run.layers[n].heads
        for n, weight in zip(chosen, weights, strict=True)
    ]
    used = [(n, share) for n, share in zip(chosen, shares, strict=True) if share]
    if not used:
        raise ValueError(f"layers={wanted!r} has none of the layers of heads=: {', '.join(names)}")
    total = sum(share for _, share in used)
    return [n for n, _ in used], [share / total for _, share in used]


def head_indices(run: Run, layer: int, heads: Heads) -> list[int] | None:
    """Return the indices of the chosen heads of a layer, None for all."""
    if heads is None:
        return None
    need(run, "head", f"heads={heads!r}")
    if isinstance(heads, Mapping):
        heads = heads.get(run.layers[layer].name, ())
    chosen = _listed(heads, "heads")
    if not chosen:
        raise ValueError("heads=() does not select any head")
    what = f"heads of {run.layers[layer].name}"
    return [_within(h, run.layers[layer].heads, what) for h in chosen]


def _check_whole(layer: Layer, pick: LayerFilter, wanted: LayerFilter) -> None:
    if len(layer.members) == 1 or pick is None or callable(pick):
        return
    parts = [Layer(name, layer.grid, layer.heads) for name in layer.members]
    if not all(picks(part, pick) for part in parts):
        raise ValueError(
            f"layers={wanted!r} matches only some of the layers averaged into {layer.name}: "
            f"record with 'layer' in keep= to keep them apart"
        )


def _listed(value: int | Sequence[int], name: str) -> list[int]:
    with suppress(TypeError):
        return [operator.index(value)]  # type: ignore[arg-type]  # any integer, numpy's too
    with suppress(TypeError):
        return [operator.index(v) for v in value]  # type: ignore[union-attr]
    raise ValueError(f"{name}={value!r}: expected an index or several, integers from 0")


def _within(number: int, length: int, name: str) -> int:
    if not -length <= number < length:
        raise ValueError(f"{name}: {number} is out of range, there are {length}")
    return number % length
