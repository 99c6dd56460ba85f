"""Scores of an edited photograph: what is right, what stayed, and what it took.

Background is what lies outside the object that changes, before and after, and a halo around it;
its PSNR, SSIM (mean over 8 x 8 windows) and MSE are to the autoencoder's own reconstruction, the
most that an edit can keep. At night there is no background. Structure distance is that of the
self-similarity of the autoencoder's latents: the mean squared difference of the cosines between the
latents of all pairs of cells, in the reconstruction and in the edit (the distance of Tumanyan et
al. 2022, with those features in the place of DINO's). The judge of `benchmarks.judge` says which
objects and colours it sees; of an edit that is right it must see what the new caption says, and no
longer what was taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.judge import CLASSES, Judge, Verdict, to_pixels, verdicts
from benchmarks.looking import outside, psnr
from benchmarks.tally import Tally
from xattn.api.invert import encoded

if TYPE_CHECKING:
    from benchmarks.photographs import Case

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Kept:
    """What was drawn of a case by a method.

    Attributes:
        pictures: uint8 (3 + edits, height, width, 3): the photo, the autoencoder's reconstruction,
            the source, and each edit.
        edits: the edits' names.
        calls: denoiser calls of the inversion.
        inverting: CPU seconds of the inversion.
        editing: CPU seconds of the edits.
    """

    pictures: npt.NDArray[np.uint8]
    edits: tuple[str, ...]
    calls: int
    inverting: float
    editing: float

    def image(self, number: int) -> Image.Image:
        """Return a picture."""
        return Image.fromarray(self.pictures[number])

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        aside = path.with_suffix(".tmp.npz")
        np.savez_compressed(aside, pictures=self.pictures, edits=np.array(self.edits),
                            costs=np.array([self.calls, self.inverting, self.editing]))  # fmt: skip
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Read a file."""
        with np.load(path) as found:
            calls, inverting, editing = found["costs"].tolist()
            return cls(found["pictures"], tuple(found["edits"].tolist()), int(calls), inverting,
                       editing)  # fmt: skip


# -- measures


def ssim(one: Image.Image, two: Image.Image, where: Mask) -> float:
    """Return the structural similarity inside a mask (Wang et al. 2004), 8 x 8 windows of grey."""
    first, second = (
        torch.from_numpy(np.array(each.convert("L"), dtype=np.float32))[None, None]
        for each in (one, two)
    )

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 8, stride=1)

    a, b = mean(first), mean(second)
    var_a, var_b = mean(first**2) - a**2, mean(second**2) - b**2
    both = mean(first * second) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    map_ = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    whole = mean(torch.from_numpy(where.astype(np.float32))[None, None]) > 0.999
    return float(map_[whole].mean())


def structure(one: Tensor, two: Tensor) -> float:
    """Return the mean squared difference of two latents' self-similarities.

    Args:
        one: (channels, height, width).
        two: of the same shape.
    """
    similar = [F.normalize(each.flatten(1), dim=0) for each in (one, two)]
    first, second = (each.T @ each for each in similar)  # (cells, cells)
    return float((first - second).square().mean())


@torch.no_grad()
def seen_at(judge: Judge, image: Image.Image, noun: str) -> Mask:
    """Return where a judge sees a noun."""
    labels = judge(to_pixels([image]))[0].argmax(0).numpy()
    found: Mask = (labels == CLASSES.index(noun)).repeat(2, axis=0).repeat(2, axis=1)
    return found


# -- one case


def score(pipe: Any, case: Case, method: str, kept: Kept, judge: Judge, tally: Tally) -> None:
    """Score the edits of a picture by one method."""
    seed, base = case.drawn.seed, kept.image(1)
    everywhere = np.ones(kept.pictures.shape[1:3], dtype=bool)
    tally.add(f"{method}: fidelity", psnr(base, kept.image(2), everywhere), seed)
    tally.add(f"{method}: denoiser calls", kept.calls, seed)
    tally.add(f"{method}: CPU time of inversion", kept.inverting / kept.editing, seed)
    images = [kept.image(3 + number) for number in range(len(kept.edits))]
    ceiling, *found = verdicts(judge, [base, *images])
    things = {(thing.colour, thing.noun) for thing in case.drawn.things}
    there = {(thing.colour, thing.noun) for thing in ceiling.things}
    tally.add("reconstruction: objects and colours seen", things <= there, seed)
    start = encoded(pipe, base)[0]
    for name, image, verdict in zip(kept.edits, images, found, strict=True):
        label = f"{method}, {name}"
        tally.add(f"{label}: right", is_right(case, name, verdict), seed)
        tally.add(f"{label}: structure", structure(start, encoded(pipe, image)[0]), seed)
        where = background(case, name, image, judge)
        if where is None:
            continue
        error = np.asarray(image, dtype=float)[where] - np.asarray(base, dtype=float)[where]
        tally.add(f"{label}: background PSNR", psnr(base, image, where), seed)
        tally.add(f"{label}: background SSIM", ssim(base, image, where), seed)
        tally.add(f"{label}: background MSE", float(np.square(error / 255).mean()), seed)


def is_right(case: Case, name: str, verdict: Verdict) -> bool:
    """Return whether a judge sees what an edit asks for."""
    seen = {(thing.colour, thing.noun) for thing in verdict.things}
    nouns = {noun for _, noun in seen}
    first, *rest = [(thing.colour, thing.noun) for thing in case.drawn.things]
    kind = name.partition(",")[0]
    if kind == "recolour":
        return {(case.colour, first[1]), *rest} <= seen and first not in seen
    if kind == "swap":
        return case.noun in nouns and first[1] not in nouns
    if kind == "add":
        return {first, case.added} <= seen
    if kind == "remove":
        return first in seen and rest[0][1] not in nouns
    return verdict.dark and {first, *rest} <= seen


def background(case: Case, name: str, image: Image.Image, judge: Judge) -> Mask | None:
    """Return where an edit should have left everything as it was; None where it should not."""
    masks, first = case.drawn.thing_masks, case.drawn.things[0]
    kind = name.partition(",")[0]
    if kind == "night":
        return None
    if kind == "remove":
        return outside(masks[1])
    if kind == "add":
        return outside(seen_at(judge, image, case.added[1]))
    noun = case.noun if kind == "swap" else first.noun
    return outside(masks[0], seen_at(judge, image, noun))
