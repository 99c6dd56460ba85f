"""Maps as colours, alone and over an image.

Colour tables are matplotlib's where it is installed; without it, those of ``BUILT_IN`` (33
entries of matplotlib's own tables, linear in between, within 2 of 255).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xattn.maps import daam

COLORMAP = "inferno"


OPACITY = 0.65


GREY = (128, 128, 128)


BUILT_IN = {
    "inferno": (
        "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e"
        "7d1e6d8a226a972766a32c61b0315bbc3754c63d4dd04545da4e3ce35933eb6429"
        "f1711ff67e14f98c0afb9b06fcaa0ffbba1ff9c932f5d949f2e865f3f586fcffa4"
    ),
    "magma": (
        "0000040303120a0822130d341d114729115a36106b440f7651127c5d177f6a1c81"
        "762181832681902a819c2e7faa337db73779c23b75cf4070db476ae55064ee5b5e"
        "f4695cf9785dfb8761fd9668fea571feb47bfec287fed194fde0a1fceeb0fcfdbf"
    ),
    "viridis": (
        "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d"
        "2f6b8e2c728e297a8e26828e23898e21918c1f978b1f9f8821a68527ad8131b57b"
        "3dbc744cc26c5cc8636ece5881d34d95d840aadc32c0df25d5e21aeae51afde725"
    ),
}


def color_table(name: str = COLORMAP) -> NDArray[np.uint8]:
    """Return the 256 colours of a colormap, uint8 (256, 3).

    Raises:
        ValueError: there is no colormap of that name.
    """
    try:
        from matplotlib import colormaps
    except ImportError:
        if name not in BUILT_IN:
            known = ", ".join(BUILT_IN)
            raise ValueError(
                f"colormap {name!r} needs matplotlib (pip install 'xattn[plots]'); "
                f"without it there are: {known}"
            ) from None
        stops = np.frombuffer(bytes.fromhex(BUILT_IN[name]), np.uint8).reshape(-1, 3)
        at = np.linspace(0, 255, len(stops)).round()
        columns = [np.interp(np.arange(256), at, stops[:, c]) for c in range(3)]
        return np.stack(columns, axis=1).round().astype(np.uint8)
    if name not in colormaps:
        raise ValueError(f"colormap {name!r} is not one of matplotlib's: inferno, viridis, ...")
    table: NDArray[np.float64] = colormaps[name](np.linspace(0, 1, 256))[:, :3]
    return (table * 255).round().astype(np.uint8)


def paint(values: Any, colormap: str = COLORMAP, top: float | None = None) -> Image.Image:
    """Return a map in colours: 0 the first of the colormap, ``top`` (the maximum) the last."""
    heat = np.asarray(values, dtype=np.float32)
    top = float(heat.max()) if top is None else top
    level = np.clip(heat / top if top > 0 else heat * 0, 0, 1)
    return Image.fromarray(color_table(colormap)[(level * 255).round().astype(np.uint8)])


def overlay(
    values: Any,
    image: Image.Image | None = None,
    *,
    opacity: float = OPACITY,
    colormap: str = COLORMAP,
    top: float | None = None,
) -> Image.Image:
    """Return an image with a map over it.

    Args:
        values: the map, (height, width) of any size.
        image: what to draw on; grey of eight times the map's size by default.
        opacity: of the colours, in [0, 1].
        colormap: a name of matplotlib's.
        top: the value of the last colour; the map's maximum by default.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    heat = torch.tensor(np.asarray(values, dtype=np.float32))
    under = picture(image, (int(heat.shape[0]), int(heat.shape[1])))
    sized = daam.to_grid(heat, (under.height, under.width))
    return Image.blend(under, paint(sized, colormap, top), opacity)


def picture(image: Image.Image | None, grid: tuple[int, int]) -> Image.Image:
    """Return an image in RGB, upright by its EXIF data, or grey of eight times the grid's size."""
    if image is None:
        return Image.new("RGB", (grid[1] * 8, grid[0] * 8), GREY)
    if isinstance(image, str | os.PathLike):
        raise ValueError(
            f"image must be a PIL image, got the path {os.fspath(image)!r}; pass "
            f"PIL.Image.open({os.fspath(image)!r})"
        )
    if not isinstance(image, Image.Image):
        raise ValueError(f"image must be a PIL image, got {type(image).__name__}")
    return ImageOps.exif_transpose(image).convert("RGB")
