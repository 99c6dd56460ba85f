"""Signed maps, drawn on one diverging scale with its colour bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.views import bars, colours, diverging, sheets


@dataclass(frozen=True, eq=False)
class SignedMap:
    """A map with values above and below zero: float32 (height, width).

    ``np.asarray(map)`` gives the array.

    Attributes:
        array: the values.
        word: what it is the map of.
        picture: the image that it belongs to, where it is known.
    """

    array: NDArray[np.float32]
    word: str
    picture: Image.Image | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is None:  # which numpy 1 does not know
            return np.asarray(self.array, dtype=dtype)
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        height, width = self.array.shape
        return (
            f"{type(self).__name__}({self.word!r}, {height}x{width}, from {self.array.min():.4g} "
            f"to {self.array.max():.4g})"
        )

    def _repr_png_(self) -> bytes:
        return sheets.png(self.overlay())

    @property
    def extreme(self) -> float:
        """The value furthest from zero, without its sign: what the scale ends at."""
        return float(np.abs(self.array).max())

    @property
    def mean(self) -> float:
        """The mean over the grid."""
        return float(self.array.mean(dtype=np.float64))

    def overlay(
        self,
        image: Image.Image | None = None,
        *,
        opacity: float = colours.OPACITY,
        colorbar: bool = True,
    ) -> Image.Image:
        """Return the image under the map: red above zero, blue below.

        Args:
            image: what to draw on; the map's own image, or grey, by default.
            opacity: of the colours, in [0, 1].
            colorbar: whether to draw the scale beside it.
        """
        under = image if image is not None else self.picture
        drawn = diverging.overlay(self.array, under, opacity=opacity)
        if not colorbar:
            return drawn
        return bars.barred(drawn, -self.extreme, self.extreme, diverging.table())
