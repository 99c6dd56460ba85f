"""Signed maps on a diverging scale, and colour bars with their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xattn import units
from xattn.maps import daam
from xattn.views import colours
from xattn.views.lettering import PAPER, text_width, write

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


def barred(
    picture: Image.Image, low: float, high: float, ramp: NDArray[np.uint8], label: str = ""
) -> Image.Image:
    """Return a picture with a colour bar to its right, numbered at both ends and in the middle.

    Args:
        picture: of any size.
        low: the value of the first colour.
        high: the value of the last colour.
        ramp: the colours, (256, 3).
        label: a line above the numbers.
    """
    font = max(11, picture.height // 24)
    gap, line = font, round(font * 1.35)
    texts = [_number(value) for value in (high, (low + high) / 2, low)]
    room = max(text_width(text, font) for text in [*texts, label])
    sheet = Image.new("RGB", (picture.width + 4 * gap + room, picture.height), PAPER)
    sheet.paste(picture.convert("RGB"), (0, 0))
    above = line if label else 0
    bar = Image.fromarray(np.ascontiguousarray(ramp[::-1][:, None]))  # (256, 1), high on top
    height = picture.height - above
    left = picture.width + gap
    sheet.paste(bar.resize((gap, height), Image.Resampling.NEAREST), (left, above))
    draw = ImageDraw.Draw(sheet)
    write(draw, (left, 0), label, font)
    for share, text in zip((0.0, 0.5, 1.0), texts, strict=True):
        write(draw, (left + 1.5 * gap, above + share * (height - line)), text, font)
    return sheet


def _number(value: float) -> str:
    sign = "\u2212" if value < 0 else ""
    return sign + units.number_text(abs(value))
