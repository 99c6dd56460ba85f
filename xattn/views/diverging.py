"""Signed maps on a diverging scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xattn.maps import daam
from xattn.views import colours

_STOPS = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))


def table() -> NDArray[np.uint8]:
    """Return 256 colours from blue through white to red, uint8 (256, 3)."""
    at = np.linspace(0, 255, len(_STOPS))
    columns = [np.interp(np.arange(256), at, [stop[c] for stop in _STOPS]) for c in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def overlay(values: Any, image: Image.Image | None, *, opacity: float) -> Image.Image:
    """Return an image under a signed map: white is 0, both ends the largest change.

    Args:
        values: (height, width), signed.
        image: what to draw on; grey of eight times the map's size by default.
        opacity: of the colours, in [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    heat = torch.tensor(np.asarray(values, dtype=np.float32))
    under = colours.picture(image, (int(heat.shape[0]), int(heat.shape[1])))
    size = (under.height, under.width)
    sized = (daam.to_grid(heat.clamp_min(0), size) - daam.to_grid(-heat.clamp_max(0), size)).numpy()
    top = float(np.abs(np.asarray(values)).max())
    share = np.clip(sized / top, -1, 1) if top > 0 else sized * 0
    level = ((share + 1) * 127.5).round().astype(np.uint8)
    return Image.blend(under, Image.fromarray(table()[level]), opacity)
