"""The difference of a word's maps in two runs: signed, on one diverging scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.results.heatmap import HeatMap
from xattn.views import bars, colours, diverging, sheets


@dataclass(frozen=True, eq=False)
class Difference:
    """What a word's attention gained in one run over another: float32 (height, width), signed.

    ``np.asarray(difference)`` gives the array: the mean attention per step, a probability, of the
    one less that of the other.

    Attributes:
        array: above 0 where the first run has more.
        word: whose maps they are.
        picture: the first run's image, where it is known.
    """

    array: NDArray[np.float32]
    word: str
    picture: Image.Image | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        height, width = self.array.shape
        return (
            f"Difference({self.word!r}, {height}x{width}, from {self.array.min():.4g} to "
            f"{self.array.max():.4g})"
        )

    def _repr_png_(self) -> bytes:
        return sheets.png(self.overlay())

    @property
    def extreme(self) -> float:
        """The largest change, up or down: what the scale ends at."""
        return float(np.abs(self.array).max())

    @property
    def mean(self) -> float:
        """The mean over the grid: how much more attention the word has overall."""
        return float(self.array.mean(dtype=np.float64))

    def overlay(
        self,
        image: Image.Image | None = None,
        *,
        opacity: float = colours.OPACITY,
        colorbar: bool = True,
    ) -> Image.Image:
        """Return the image under the difference: red where the first run has more, blue less.

        Args:
            image: what to draw on; the first run's image, or grey, by default.
            opacity: of the colours, in [0, 1].
            colorbar: whether to draw the scale beside it.
        """
        under = image if image is not None else self.picture
        drawn = diverging.overlay(self.array, under, opacity=opacity)
        if not colorbar:
            return drawn
        return bars.barred(drawn, -self.extreme, self.extreme, diverging.table())


def difference(mine: HeatMap, other: HeatMap, steps: tuple[int, int]) -> Difference:
    """Return the difference of two heat maps, each divided by its number of steps.

    The other map is brought to the first one's grid.
    """
    mine_each = mine.array.astype(np.float64) / steps[0]
    other_each = other.resize(mine.shape).array.astype(np.float64) / steps[1]
    return Difference((mine_each - other_each).astype(np.float32), mine.word, mine.picture)
