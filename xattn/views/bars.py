"""Colour bars with their numbers, beside pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xattn import units
from xattn.views.lettering import PAPER, text_width, write


def barred(
    picture: Image.Image,
    low: float,
    high: float,
    ramp: NDArray[np.uint8],
    label: str = "",
    *,
    most: int = 40,
) -> Image.Image:
    """Return a picture with a colour bar to its right, numbered at both ends and in the middle.

    Args:
        picture: of any size.
        low: the value of the first colour.
        high: the value of the last colour.
        ramp: the colours, (256, 3).
        label: a line above the numbers.
        most: the largest height of letters, in pixels.
    """
    font = min(most, max(11, picture.height // 24))
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
