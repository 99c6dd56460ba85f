"""``dissect(pipe, scenes)``: which concept each head, or channel, of a model knows.

By intersection over union: a head's map of a word, above a threshold, against the word's mask; as
in network dissection (Bau et al. 2017) intersections and unions are summed over all pictures first.
By relevance, without masks: see ``xattn.attribution.relevance``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from xattn.api.probe import probe
from xattn.attribution.channels import Channel, activations, channel_ious, text_modules
from xattn.attribution.maps import head_maps
from xattn.attribution.marked import Marked, marked
from xattn.attribution.relevance import Points, of_words, reads_alone
from xattn.records.run import LayerFilter, Run
from xattn.results.dissection import Dissection, Head
from xattn.text.prompt import WordError
from xattn.toyland.scenes import Scene
from xattn.toyland.world import GROUNDS, NOUNS, PALETTE, SIZES

Concepts = Mapping[str, Sequence[str]]
LEVELS = (0.3, 0.5, 0.7)


def dissect(
    pipe: Any,
    scenes: Any,
    *,
    by: str = "iou",
    units: str = "heads",
    concepts: Concepts | None = None,
    threshold: float | None = None,
    levels: Sequence[float] = LEVELS,
    layers: Any = None,
    batch: int = 8,
    seed: int = 0,
) -> Dissection:
    """Tell which concept each head of a model's text attention knows.

    Every picture is passed once through the denoiser at each level, as by ``probe``.

    Args:
        pipe: a pipeline that can be probed: Stable Diffusion 1, 2, XL, 3, or FLUX.1.
        scenes: pictures whose words have masks: scenes of Toyland, a folder with a
            ``captions.jsonl``, or ``xattn.attribution.marked.Marked`` pictures.
        by: "iou" against the masks, or "relevance", which needs none (head relevance vectors,
            Park et al. 2025, section 3).
        units: "heads" of the text attention, by their maps of words, or "channels" of modules'
            outputs, by their activations, with masks alone.
        concepts: the words of each concept, such as ``{"colour": ["red", "blue"]}``. By default
            each word with a mask is a concept of its own; of Toyland's scenes each kind of word:
            "colour", "object", "ground", "size", "side".
        threshold: of a head's map: the share of cells that are above it, over all pictures (0.005
            in Bau et al. 2017); twice each map's mean by default, of a channel's the mean of
            absolute values.
        levels: shares of the noise schedule.
        layers: as for ``heatmap``; those of the default heat map by default. Of channels names or
            globs of the denoiser's modules ("mid_block", "up_blocks.*.resnets.0", where a star
            stands for one part of a name); its text attention's outputs by default.
        batch: how many pictures pass together.
        seed: of the noise.

    Raises:
        ValueError: an option is out of its range, or no word of the concepts has a mask.

    Example:
        >>> from xattn.toyland import scene
        >>> table = xattn.dissect(xattn.demo(), [scene(n) for n in range(20)])
        >>> print(table.table())
    """
    _check(by, units, threshold)
    pictures = marked(scenes)
    words = _concepts(pictures, _kinds(scenes) if concepts is None else concepts, by, concepts)
    if units == "channels":
        names = text_modules(pipe) if layers is None else layers
        return _of_channels(
            pictures, words, threshold,
            *activations(pipe, pictures, names, levels=levels, batch=batch, seed=seed),
        )  # fmt: skip
    if by == "relevance" and reads_alone(pipe):
        return of_words(pipe, pictures, words, levels=levels, layers=layers, batch=batch, seed=seed)
    tally = _Overlaps(words, threshold) if by == "iou" else Points(words)
    for start in range(0, len(pictures), batch):
        some = pictures[start : start + batch]
        trace = probe(
            pipe, [each.image for each in some], [each.prompt for each in some],
            levels=levels, seed=seed + start, batch=batch, keep=("layer", "head"),
        )  # fmt: skip
        for picture, each in zip(some, trace, strict=True):
            tally.add(each.run, picture, layers)
    heads, values, counts = tally.found()
    return Dissection(heads, tuple(words), values, counts, by, words)


def _check(by: str, units: str, threshold: float | None) -> None:
    if by not in ("iou", "relevance"):
        raise ValueError(f"by={by!r} must be 'iou' or 'relevance'")
    if units not in ("heads", "channels"):
        raise ValueError(f"units={units!r} must be 'heads' or 'channels'")
    if units == "channels" and by != "iou":
        raise ValueError(
            "by='relevance' is of heads, which attend to words; channels have by='iou'"
        )
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold!r} is a share of cells in (0, 1), or None")


def _of_channels(
    pictures: Sequence[Marked],
    words: dict[str, list[str]],
    threshold: float | None,
    maps: Mapping[str, Sequence[torch.Tensor]],
    latents: Sequence[tuple[int, int]],
) -> Dissection:
    """Return the table of channels; a picture without a concept has an empty mask of it."""
    masks = {
        concept: [
            on_grid(_whole(picture, own), latent)
            for picture, latent in zip(pictures, latents, strict=True)
        ]
        for concept, own in words.items()
    }
    units = tuple(Channel(name, n) for name, each in maps.items() for n in range(len(each[0])))
    values = np.concatenate([channel_ious(each, masks, threshold) for each in maps.values()])
    counts = np.array([sum(bool(mask.any()) for mask in own) for own in masks.values()])
    return Dissection(units, tuple(words), values, counts, "iou", words, "channels")


def _whole(picture: Marked, words: Sequence[str]) -> NDArray[np.bool_]:
    """Return where any of a concept's words is seen."""
    own = [mask for word in words if (mask := picture.masks.get(word)) is not None]
    empty = np.zeros(picture.image.size[::-1], dtype=bool)
    return np.logical_or.reduce(own) if own else empty


def _kinds(scenes: Any) -> Concepts | None:
    """Return Toyland's words by their kind, where all scenes are of it."""
    given = scenes if isinstance(scenes, Sequence) and not isinstance(scenes, str) else ()
    if not given or not all(isinstance(each, Scene) for each in given):
        return None
    return {
        "colour": list(PALETTE),
        "object": list(NOUNS),
        "ground": list(GROUNDS),
        "size": [size for size in SIZES if size],
        "side": ["left", "right"],
    }


def _concepts(
    pictures: Sequence[Marked], given: Concepts | None, by: str, asked: Concepts | None
) -> dict[str, list[str]]:
    """Return the words of each concept; of kinds that nobody asked for, those that are there.

    Raises:
        ValueError: no word of a concept that was asked for has a mask.
    """
    there = sorted({word for picture in pictures for word in picture.masks})
    if given is None:
        return {word: [word] for word in there}
    found = {name: list(words) for name, words in given.items()}
    missing = [name for name, words in found.items() if not set(words).intersection(there)]
    if asked is None:
        return {name: words for name, words in found.items() if name not in missing}
    if missing and by == "iou":
        raise ValueError(
            f"concepts: no word of {missing[0]!r} has a mask in these pictures; those that have "
            f"one are: {', '.join(there)}"
        )
    return found


def on_grid(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask on another grid: cells that it covers by half or more."""
    given = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None]
    small: NDArray[np.float32] = F.interpolate(given, size=grid, mode="area")[0, 0].numpy()
    return small >= 0.5


class _Overlaps:
    """Intersections and unions of each head's maps with masks, by concept."""

    def __init__(self, words: dict[str, list[str]], share: float | None) -> None:
        self.words, self.share = words, share
        self.maps: dict[tuple[Head, str], list[NDArray[np.float32]]] = defaultdict(list)
        self.masks: dict[str, list[NDArray[np.bool_]]] = defaultdict(list)

    def add(self, run: Run, picture: Marked, layers: LayerFilter) -> None:
        """Keep the maps of a picture's words, and their masks."""
        for concept, words in self.words.items():
            for word in words:
                if word not in picture.masks:
                    continue
                with suppress(WordError):
                    for head, heat in head_maps(run, word, layers).items():
                        self.maps[head, concept].append(heat)
                    self.masks[concept].append(on_grid(picture.masks[word], run.latent))

    def found(self) -> tuple[tuple[Head, ...], NDArray[np.float64], NDArray[np.int64]]:
        """Return the heads, (heads, concepts) IoUs, and how many masks each concept had."""
        heads = tuple(dict.fromkeys(head for head, _ in self.maps))
        values = np.zeros((len(heads), len(self.words)))
        for h, head in enumerate(heads):
            limit = self._limit(head)
            for c, concept in enumerate(self.words):
                values[h, c] = iou(self.maps[head, concept], self.masks[concept], limit)
        counts = np.array([len(self.masks[concept]) for concept in self.words])
        return heads, values, counts

    def _limit(self, head: Head) -> float | None:
        if self.share is None:
            return None
        own = [m.ravel() for concept in self.words for m in self.maps[head, concept]]
        return float(np.quantile(np.concatenate(own), 1 - self.share))


def iou(
    maps: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.bool_]],
    limit: float | None = None,
) -> float:
    """Return the IoU of maps above a limit with masks, summed over all; 0 where both are empty.

    Args:
        maps: (height, width) each.
        masks: of the same shapes.
        limit: what a map must exceed; twice its own mean where None.
    """
    both = either = 0
    for heat, mask in zip(maps, masks, strict=True):
        above = heat > (2 * heat.mean() if limit is None else limit)
        both += int((above & mask).sum())
        either += int((above | mask).sum())
    return both / either if either else 0.0
