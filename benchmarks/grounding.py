"""Truth of heat maps: words of drawn scenes against their exact masks.

Scenes never seen in training are noised to a few levels and passed once through the denoiser
inside ``xattn.record``. Thresholds, and layers if chosen, come from other scenes than the scored
ones. What can be compared depends on the family (``unet_ways.py``, ``joint_ways.py``).
Intervals are 95 % bootstrap intervals over scenes; differences to the default heat map are taken
word by word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

import xattn
from benchmarks.tally import interval
from benchmarks.toyland_maps import LEVELS, kind_of
from xattn.maps.daam import to_grid
from xattn.records.run import Layer, Run
from xattn.toyland.scenes import Scene

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

THRESHOLDS = np.linspace(0.1, 0.9, 17)
EVERY = "all words"


@dataclass(frozen=True)
class Case:
    """One word of one scene.

    Attributes:
        scene: the scene's seed.
        kind: the word's class.
        mask: its true mask, (128, 128).
        maps: its maps on the latent grid, averaged over heads, (levels, layers, height, width).
        parts: what the compared ways combine, by name; each ends with (height, width).
    """

    scene: int
    kind: str
    mask: Mask
    maps: Array
    parts: dict[str, Array]

    @property
    def default(self) -> Array:
        """Its heat map from ``trace.heatmap``, (height, width)."""
        return self.parts["default"]


@dataclass(frozen=True)
class Recorded:
    """The words of some scenes, and the layers of their maps."""

    cases: list[Case]
    layers: tuple[Layer, ...]
    latent: tuple[int, int]


Read = Callable[[Any, Sequence[Scene]], tuple[list[Case], Run]]
"""A function from a pipeline and a batch of scenes to their words and a recorded run."""

Way = Callable[[Case], Array]
"""A way to make a map of one word, (height, width)."""


def record_scenes(pipe: Any, scenes: Sequence[Scene], read: Read, batch: int = 20) -> Recorded:
    """Read the maps of the words of some scenes, a batch at a time."""
    cases: list[Case] = []
    for start in range(0, len(scenes), batch):
        new, run = read(pipe, scenes[start : start + batch])
        cases += new
    return Recorded(cases, run.layers, run.latent)


def probed(pipe: Any, scenes: Sequence[Scene], keep: Sequence[str]) -> xattn.Trace:
    """Probe scenes at `LEVELS`, each with noise of its own; a run for each, with affinity."""
    return xattn.probe(
        pipe,
        [one.image for one in scenes],
        [one.caption for one in scenes],
        levels=[level / 1000 for level in LEVELS],
        seed=[one.seed for one in scenes],
        batch=len(scenes),
        keep=keep,
        affinity=True,
        dtype=torch.float32,
    )


def words_of(one: Scene) -> list[tuple[str, str, Mask]]:
    """Return the words of a scene that are somewhere in it: (word, class, mask)."""
    return [
        (word.text, _kind(word.text, word.about), one.masks[word.text])
        for word in one.words
        if word.about is not None
    ]


def by_layer(run: Run) -> Tensor:
    """Return a picture's maps on the latent grid, (levels, layers, tokens, height, width)."""
    each = [to_grid(run.maps(i)[:, 0], run.latent) for i in range(len(run.layers))]
    return torch.stack([maps.mean(1) for maps in each], dim=1)


def _kind(word: str, about: Any) -> str:
    kind = kind_of(word)
    if kind == "colour":
        return "ground colour" if about == "ground" else "object colour"
    return kind


def part(name: str) -> Way:
    """Return the way that takes one part as it is."""
    return lambda case: case.parts[name]


def ceiling(case: Case) -> Array:
    """Return the exact mask on the latent grid: a perfect heat map."""
    mask = torch.from_numpy(case.mask).float()[None, None]
    small: Array = F.interpolate(mask, size=case.default.shape, mode="area")[0, 0].numpy()
    return small


# -- scores


def enlarged(maps: Iterable[Array], size: tuple[int, int]) -> Array:
    """Resize maps to pixels, (count, height, width)."""
    stacked = torch.from_numpy(np.stack(list(maps)).astype(np.float32))
    pixels: Array = to_grid(stacked, size).numpy()
    return pixels


def pointed(heats: Array, masks: Mask) -> Array:
    """Return for each map whether its maximum lies in the mask."""
    peaks = heats.reshape(len(heats), -1).argmax(1)
    hits: Array = masks.reshape(len(masks), -1)[np.arange(len(peaks)), peaks]
    return hits.astype(np.float32)


def ious(heats: Array, masks: Mask, threshold: float) -> Array:
    """Return each map's IoU, thresholded at a share of its maximum."""
    found = heats >= threshold * heats.max((1, 2), keepdims=True)
    both = (found & masks).sum((1, 2))
    shares: Array = both / np.maximum((found | masks).sum((1, 2)), 1)
    return shares


@dataclass(frozen=True)
class Score:
    """One way's scores, word by word, in the order of the cases."""

    points: Array
    ious: Array


def score(way: Way, cases: Sequence[Case], others: Sequence[Case]) -> Score:
    """Score a way; the threshold of each class of words is chosen on other scenes."""
    points, overlaps = np.zeros(len(cases), np.float32), np.zeros(len(cases), np.float32)
    for kind in sorted({case.kind for case in cases}):
        threshold = _threshold(way, [case for case in others if case.kind == kind])
        where = [i for i, case in enumerate(cases) if case.kind == kind]
        masks = np.stack([cases[i].mask for i in where])
        heats = enlarged((way(cases[i]) for i in where), masks.shape[1:])
        points[where] = pointed(heats, masks)
        overlaps[where] = ious(heats, masks, threshold)
    return Score(points, overlaps)


def _threshold(way: Way, cases: Sequence[Case]) -> float:
    if not cases:
        return 0.4
    masks = np.stack([case.mask for case in cases])[:, 1::2, 1::2]
    heats = enlarged((way(case) for case in cases), masks.shape[1:])
    means = [float(ious(heats, masks, t).mean()) for t in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(means))])


def choose_layers(recorded: Recorded) -> tuple[int, ...]:
    """Choose the set of layers with the best score for the words of these scenes."""
    cases = [c for c in recorded.cases if c.kind in ("noun", "object colour")]
    masks = np.stack([case.mask for case in cases])[:, 2::4, 2::4]
    by_layer = np.stack([case.maps.mean(0) for case in cases], axis=1)  # (layers, cases, 16, 16)
    each = np.stack([enlarged(maps, masks.shape[1:]) for maps in by_layer])
    layers = range(len(each))
    sets = [s for n in range(1, len(each) + 1) for s in itertools.combinations(layers, n)]

    return max(sets, key=lambda subset: worth(each[list(subset)].mean(0), masks))


def worth(heats: Array, masks: Mask) -> float:
    best = max(float(ious(heats, masks, t).mean()) for t in THRESHOLDS[::2])
    return best + float(pointed(heats, masks).mean())


def summary(mine: Score, base: Score, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the figures of each class of words, and of the differences to the default."""
    found: dict[str, Any] = {}
    for kind in [EVERY, *sorted({case.kind for case in cases})]:
        where = [i for i, case in enumerate(cases) if kind in (EVERY, case.kind)]
        owners = [cases[i].scene for i in where]

        def stated(values: Array, where: list[int] = where, owners: list[int] = owners) -> Any:
            return interval([float(values[i]) for i in where], owners)

        found[kind] = {
            "pointing": stated(mine.points),
            "iou": stated(mine.ious),
            "pointing above default": stated(mine.points - base.points),
            "iou above default": stated(mine.ious - base.ious),
        }
    return found


def better(result: dict[str, Any]) -> list[str]:
    """Return the ways better than the default in one figure and worse in none.

    Both beyond noise: by the interval of the difference, taken word by word.
    """
    found = []
    for name, figures in result["ways"].items():
        above = [figures[EVERY][f"{what} above default"] for what in ("pointing", "iou")]
        rises, falls = any(x["low"] > 0 for x in above), any(x["high"] < 0 for x in above)
        if rises and not falls and "ceiling" not in name:
            found.append(name)
    return found
