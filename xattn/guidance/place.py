"""Place: a word that should act inside of a box or mask (layout guidance, BoxDiff)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.guidance.goal import Goal, ImageMaps, check_word
from xattn.text.prompt import Words

SIDES: dict[str, tuple[float, float, float, float]] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
    "centre": (0.25, 0.25, 0.75, 0.75),
}
"""Boxes with names: (left, top, right, bottom), shares of the image's width and height."""


@dataclass(frozen=True)
class Place(Goal):
    """Make a word act inside of a part of the image.

    With ``method="layout"`` the loss is (1 - share of the map's mass inside)² (Chen et al. 2023,
    "Training-free layout control with cross-attention guidance", backward guidance; the authors'
    code takes the square for each head, here it is that of the heads' mean). With "boxdiff" it is
    BoxDiff's inner-box and outer-box constraint (Xie et al. 2023): 1 less the mean of the highest
    fifth inside, and the mean of the highest fifth outside, on the map divided by its maximum where
    the authors' code takes a softmax over tokens; without its corner constraint.

    Attributes:
        word: the word, as text or token positions.
        box: (left, top, right, bottom) in shares of width and height, or one of "left", "right",
            "top", "bottom", "centre".
        mask: in place of a box, where to act: (height, width), of any size.
        method: "layout" or "boxdiff".
        inside: it is met where this share of the map's mass lies inside.

    Raises:
        ValueError: a value is out of range, or both or neither of box and mask are given.

    Example:
        >>> with xattn.steer(pipe, xattn.Place("star", "left")) as steering:
        ...     image = pipe("a star on a lawn").images[0]
    """

    word: Words
    box: str | Sequence[float] | None = None
    mask: Any = None
    method: Literal["layout", "boxdiff"] = "layout"
    inside: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("Place", self.word)
        if (self.box is None) == (self.mask is None):
            raise ValueError("Place needs box= or mask=, one of them")
        if self.method not in ("layout", "boxdiff"):
            raise ValueError(f"Place: method={self.method!r} must be 'layout' or 'boxdiff'")
        if self.box is not None:
            box_of(self.box)
        elif np.asarray(self.mask).ndim != 2 or not np.asarray(self.mask).any():
            raise ValueError("Place: mask= must be (height, width) with something in it")

    @property
    def words(self) -> tuple[Words, ...]:
        """The word to place."""
        return (self.word,)

    def region(self, grid: tuple[int, int]) -> Tensor:
        """Return how much of each cell of a grid is inside, (height, width) in [0, 1]."""
        if self.box is None:
            mask = torch.as_tensor(np.asarray(self.mask, dtype=np.float32))
            return F.interpolate(mask[None, None], size=grid, mode="area")[0, 0].clamp(0, 1)
        left, top, right, bottom = box_of(self.box)
        rows, columns = _covered(top, bottom, grid[0]), _covered(left, right, grid[1])
        return rows[:, None] * columns

    def loss(self, maps: ImageMaps) -> Tensor:
        """Return the loss of the chosen method."""
        heat = maps.of(self.word)
        region = self.region((heat.shape[0], heat.shape[1])).to(heat)
        if self.method == "layout":
            return (1 - (heat * region).sum() / heat.sum().clamp_min(1e-12)) ** 2
        scaled = heat / heat.max().clamp_min(1e-12)
        within, without = scaled * region, scaled * (1 - region)
        return (1 - _highest(within, region)) + _highest(without, 1 - region)

    def met(self, loss: float, share: float) -> bool:
        """Return whether enough of the map lies inside."""
        if self.method == "layout":
            return loss <= (1 - self.inside) ** 2
        return loss <= 2 * (1 - self.inside)

    def __str__(self) -> str:
        where = "mask" if self.box is None else self.box
        return f"Place({self.word!r}, {where!r})"


def box_of(given: str | Sequence[float]) -> tuple[float, float, float, float]:
    """Return a box (left, top, right, bottom) from its name or its four shares.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str):
        if given not in SIDES:
            raise ValueError(f"box={given!r} is not a place; the places are: {', '.join(SIDES)}")
        return SIDES[given]
    listed = list(given) if isinstance(given, Iterable) else []
    numbers = tuple(float(n) for n in listed)
    if (
        len(numbers) != 4
        or not (0 <= numbers[0] < numbers[2] <= 1)
        or not (0 <= numbers[1] < numbers[3] <= 1)
    ):
        raise ValueError(
            f"box={given!r} must be (left, top, right, bottom), shares of the image from 0 to 1"
        )
    return numbers


def _covered(start: float, end: float, cells: int) -> Tensor:
    """Return which share of each cell lies between two shares of the axis."""
    edges = torch.arange(cells + 1) / cells
    return ((edges[1:].clamp_max(end) - edges[:-1].clamp_min(start)) * cells).clamp(0, 1)


def _highest(values: Tensor, region: Tensor, share: float = 0.2) -> Tensor:
    """Return the mean of the highest values, as many as a share of the region's cells."""
    count = max(1, round(share * float(region.sum())))
    return values.flatten().topk(count).values.mean()
