"""The heat map of a word: an array that can be looked at, measured and turned into a mask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xattn.maps import daam, measures
from xattn.maps.blur import blurred
from xattn.views import bars, colours, sheets


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where a word acts on an image: float32 (height, width), nowhere negative.

    ``np.asarray(heat)`` gives the array. Every operation returns a new heat map.

    Attributes:
        array: the map, on the latent grid until resized.
        word: what it is the map of.
        meta: where it comes from (image, steps, layers ...), plain values.
        picture: the image that it belongs to, where it is known.

    Raises:
        ValueError: the array is not a finite, non-negative (height, width).
    """

    array: NDArray[np.float32]
    word: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    picture: Image.Image | None = None

    def __post_init__(self) -> None:
        values = np.array(self.array, dtype=np.float32)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"a heat map is (height, width), got the shape {values.shape}")
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError("a heat map must be finite and nowhere negative")
        values.flags.writeable = False
        object.__setattr__(self, "array", values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is None:  # which numpy 1 does not know
            return np.asarray(self.array, dtype=dtype)
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        height, width = self.shape
        return f"HeatMap({self.word!r}, {height}x{width}, maximum {self.maximum:.4g})"

    def _repr_png_(self) -> bytes:
        return sheets.png(self.overlay())

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.array.shape
        return height, width

    # -- new maps from this one

    def resize(self, size: tuple[int, int]) -> HeatMap:
        """Return the map at (height, width): bicubic, clamped at 0."""
        height, width = size
        if min(height, width) < 1:
            raise ValueError(f"size is (height, width), both at least 1; got {size}")
        if (height, width) == self.shape:
            return self
        return self._with(daam.to_grid(torch.tensor(self.array), (int(height), int(width))))

    def smooth(self, sigma: float) -> HeatMap:
        """Return the map blurred by a Gaussian of so many cells; 0 leaves it as it is."""
        if sigma < 0:
            raise ValueError(f"sigma must not be negative, got {sigma}")
        if sigma == 0:
            return self
        return self._with(blurred(torch.tensor(self.array)[None], sigma)[0])

    def sharpen(self, temperature: float) -> HeatMap:
        """Return the map to the power 1 / temperature, its maximum kept.

        Below 1 sharpens, 1 leaves it as it is, above 1 flattens.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if temperature == 1:
            return self
        most = self.array.max()
        if most == 0:
            return self
        share = self.array.astype(np.float64) / most
        return self._with(most * share ** (1 / temperature))

    def normalized(self, by: Literal["maximum", "range"] = "maximum") -> HeatMap:
        """Return the map scaled into [0, 1].

        Args:
            by: "maximum" divides by it; "range" takes the minimum to 0 and the maximum to 1. A map
                that is zero everywhere stays, and by range an even one becomes zero.

        Raises:
            ValueError: by is neither.
        """
        if by not in ("maximum", "range"):
            raise ValueError(f"by={by!r} is neither maximum nor range")
        values = self.array if by == "maximum" else self.array - self.array.min()
        most = values.max()
        if most > 0:
            return self._with(values / most)
        return self if by == "maximum" else self._with(values)

    # -- pictures and masks

    def overlay(
        self,
        on: Image.Image | None = None,
        *,
        opacity: float = colours.OPACITY,
        colormap: str = colours.COLORMAP,
        colorbar: bool = False,
        beside: bool = False,
    ) -> Image.Image:
        """Return a picture with the map over it, scaled to the map's own maximum.

        Args:
            on: a picture to draw on; the image recorded with the map, or grey, by default.
            opacity: of the colours, in [0, 1].
            colormap: a name of matplotlib's.
            colorbar: whether to draw the scale to the right, from 0 to the maximum.
            beside: whether to put the plain picture to the left.

        Example:
            >>> trace.heatmap("red").overlay(colorbar=True, beside=True).save("red.png")
        """
        under = on if on is not None else self.picture
        drawn = colours.overlay(
            self.array, under, opacity=opacity, colormap=colormap, top=self.maximum
        )
        if beside:
            drawn = sheets.side_by_side(colours.picture(under, self.shape), drawn)
        if colorbar:
            ramp = colours.color_table(colormap)
            drawn = bars.barred(drawn, 0, self.maximum, ramp, self.word)
        return drawn

    def save(
        self, path: str | os.PathLike[str], on: Image.Image | None = None, **options: Any
    ) -> None:
        """Write the map: as a picture, or its numbers where the file's name ends in .npy.

        Args:
            path: where to; its ending chooses the kind of picture, such as .png or .jpg.
            on: a picture to draw on, as for ``overlay``.
            **options: of the picture, as for ``overlay``.

        Raises:
            ValueError: the ending is neither .npy nor a picture's, or numbers are to be drawn on
                a picture.

        Example:
            >>> trace.heatmap("red").save("red.png", colorbar=True)
            >>> trace.heatmap("red").save("red.npy")  # float32, (height, width)
        """
        ending = Path(path).suffix.lower()
        if ending == ".npy":
            if on is not None or options:
                raise ValueError(f"path={str(path)!r}: numbers take none of overlay's options")
            np.save(path, self.array)
        elif ending in Image.registered_extensions():
            self.overlay(on, **options).save(path)
        else:
            raise ValueError(
                f"path={str(path)!r} must end in .png or another picture's ending, or in .npy for "
                "the numbers; a whole recording is written by trace.save"
            )

    def mask(self, threshold: float = 0.4) -> NDArray[np.bool_]:
        """Return where the map reaches a share of its maximum, (height, width) bool.

        On the map's own grid: ``heat.resize((512, 512)).mask(0.4)`` is one of an image's size.
        """
        return measures.threshold_mask(self.array, threshold)

    # -- measures

    @property
    def mean(self) -> float:
        """The mean over the grid."""
        return measures.mean(self.array)

    @property
    def maximum(self) -> float:
        """The highest value."""
        return measures.maximum(self.array)

    @property
    def minimum(self) -> float:
        """The lowest value."""
        return measures.minimum(self.array)

    def area(self, threshold: float = 0.4) -> float:
        """Return the share of the grid where the map reaches a share of its maximum."""
        return measures.area(self.array, threshold)

    @property
    def std(self) -> float:
        """The standard deviation over the grid."""
        return measures.std(self.array)

    @property
    def focus_area(self) -> float:
        """The smallest share of the grid that holds half of the mass, in (0, 1]."""
        return measures.focus_area(self.array)

    @property
    def focus(self) -> float:
        """1 less the focus area: near 1 for a point, 0.5 for an even map."""
        return measures.focus(self.array)

    @property
    def peak(self) -> tuple[float, float]:
        """The middle of the highest cell (row, column), each in [0, 1] from the top left."""
        return measures.peak(self.array)

    @property
    def centre(self) -> tuple[float, float]:
        """The centre of mass (row, column), each in [0, 1] from the top left corner."""
        return measures.centre(self.array)

    @property
    def entropy(self) -> float:
        """The entropy over the grid, in [0, 1]: 0 a single cell, 1 an even map."""
        return measures.entropy(self.array)

    def iou(self, mask: Any, threshold: float | None = None) -> float:
        """Return the intersection over union with a mask of any size.

        The map is brought to the mask's size. Without a threshold it is the best that any
        threshold reaches.
        """
        wanted, heat = self._beside(mask)
        if threshold is None:
            return measures.best_iou(heat, wanted)[0]
        return measures.iou(heat, wanted, threshold)

    def points_at(self, mask: Any) -> bool:
        """Return whether the map's peak lies inside a mask of any size (the pointing game)."""
        wanted, heat = self._beside(mask)
        return measures.pointing(heat, wanted)

    def measure(self) -> dict[str, measures.Value]:
        """Return every measure that needs no mask, by name, as ``xattn.maps.measures`` lists them.

        A number each, or a place (row, column) in [0, 1].
        """
        return measures.measured(self.array)

    def _beside(self, mask: Any) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        wanted = np.asarray(mask).astype(bool)
        if wanted.ndim != 2:
            raise ValueError(f"a mask is (height, width), got the shape {wanted.shape}")
        height, width = wanted.shape
        return wanted, self.resize((height, width)).array

    def _with(self, values: Any) -> HeatMap:
        return replace(self, array=np.asarray(values, dtype=np.float32))
