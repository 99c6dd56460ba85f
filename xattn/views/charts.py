"""Charts without matplotlib: signed bars with intervals, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xattn.units import number_text
from xattn.views.colours import COLORMAP, color_table
from xattn.views.lettering import FAINT, INK, PAPER, text_width, write

Array = NDArray[np.float64]
FONT, GAP = 14, 8
LINE = round(FONT * 1.35)
UP, DOWN = (48, 80, 140), (178, 60, 50)
COLOURS = ((48, 80, 140), (214, 110, 30), (120, 120, 128), (60, 140, 80), (140, 70, 160))


def bars(
    names: Sequence[str],
    values: Array,
    intervals: Array | None = None,
    *,
    title: str = "",
    width: int = 640,
) -> Image.Image:
    """Draw a bar for each name from 0 to its value, to the left where it is negative.

    Args:
        names: a label for each bar.
        values: (names,).
        intervals: (names, 2), each drawn as a line with two ends.
        title: a line above.
        width: in pixels.
    """
    limits = (
        values[:, None] if intervals is None else np.concatenate([intervals, values[:, None]], 1)
    )
    finite = limits[np.isfinite(limits)]
    low, high = min(0.0, *finite.tolist()), max(0.0, *finite.tolist())
    span = max(high - low, 1e-12)
    numbers = [number_text(float(value)) for value in values]
    x0 = 2 * GAP + max(text_width(name, FONT) for name in names)
    room = max(40, width - x0 - 3 * GAP - max(text_width(number, FONT) for number in numbers))
    height = LINE * (len(names) + 1) + 3 * GAP
    sheet = Image.new("RGB", (max(width, text_width(title, FONT) + 4 * GAP), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (2 * GAP, GAP), title, FONT)

    def at(value: float) -> int:
        return int(x0 + round(room * (value - low) / span))

    for r, (name, value, number) in enumerate(zip(names, values, numbers, strict=True), start=1):
        y = GAP + r * LINE
        write(draw, (x0 - GAP - text_width(name, FONT), y), name, FONT)
        left, right = sorted((at(0.0), at(float(value))))
        draw.rectangle((left, y + 4, right, y + LINE - 2), fill=UP if value >= 0 else DOWN)
        end = right
        if intervals is not None and np.isfinite(intervals[r - 1]).all():
            first, last = (at(float(each)) for each in intervals[r - 1])
            end = _whisker(draw, first, last, y)
        write(draw, (max(end, right) + GAP, y), number, FONT)
    draw.line((at(0.0), GAP + LINE, at(0.0), height - GAP), fill=FAINT)
    return sheet


def _whisker(draw: ImageDraw.ImageDraw, left: int, right: int, y: int) -> int:
    middle = y + LINE // 2 + 1
    draw.line((left, middle, right, middle), fill=INK)
    for x in (left, right):
        draw.line((x, middle - 3, x, middle + 3), fill=INK)
    return right


def curves(
    lines: Mapping[str, Array], *, title: str = "", width: int = 640, height: int = 360
) -> Image.Image:
    """Draw curves over a common axis of steps, from 0 to the largest value, each with its name.

    Args:
        lines: by name, numbers at 0, 1, 2 ...
        title: a line above.
        width: in pixels.
        height: in pixels.
    """
    flat = np.concatenate([np.asarray(line) for line in lines.values()])
    low, high = min(0.0, float(flat.min())), max(1e-12, float(flat.max()))
    left = 2 * GAP + max(text_width(number_text(v), FONT) for v in (low, high))
    top, bottom = 2 * GAP + (len(lines) + 1) * LINE, height - LINE - 2 * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (left, GAP), title, FONT)
    draw.rectangle((left, top, width - 2 * GAP, bottom), outline=FAINT)
    for value, y in ((high, top), (low, bottom - LINE)):
        text = number_text(value)
        write(draw, (left - GAP - text_width(text, FONT), y), text, FONT)
    for n, (name, line) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        steps = max(1, len(line) - 1)
        points = [
            (
                left + round((width - 2 * GAP - left) * i / steps),
                bottom - round((bottom - top) * (float(value) - low) / (high - low)),
            )
            for i, value in enumerate(line)
        ]
        draw.line(points, fill=colour, width=3)
        write(draw, (left, GAP + (n + 1) * LINE), name, FONT, colour)
    count = str(max(len(line) for line in lines.values()) - 1)
    write(draw, (left, bottom + GAP / 2), "0", FONT)
    write(draw, (width - 2 * GAP - text_width(count, FONT), bottom + GAP / 2), count, FONT)
    return sheet


def matrix(
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    colormap: str = COLORMAP,
    cell: int = 44,
) -> Image.Image:
    """Draw a table of numbers as colours from 0 to the largest, with the number in each cell.

    Args:
        values: (rows, columns), nowhere negative.
        rows: a label for each row.
        columns: a label for each column.
        title: a line above.
        colormap: a name of matplotlib's.
        cell: the least width of a cell in pixels.
    """
    wide = max(cell, *(text_width(name, FONT) + GAP for name in columns))
    left = 2 * GAP + max(text_width(name, FONT) for name in rows)
    top = 2 * GAP + 2 * LINE
    size = (left + wide * len(columns) + 2 * GAP, top + LINE * len(rows) + GAP)
    sheet = Image.new("RGB", (max(size[0], text_width(title, FONT) + 4 * GAP), size[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (2 * GAP, GAP), title, FONT)
    most = max(float(values.max()), 1e-12)
    levels = (np.clip(values / most, 0, 1) * 255).round().astype(np.uint8)
    colours = color_table(colormap)[levels]  # (rows, columns, 3)
    for c, name in enumerate(columns):
        write(draw, (left + c * wide, GAP + LINE), name, FONT)
    for r, name in enumerate(rows):
        y = top + r * LINE
        write(draw, (left - GAP - text_width(name, FONT), y), name, FONT)
        for c in range(len(columns)):
            x, colour = left + c * wide, tuple(int(part) for part in colours[r, c])
            draw.rectangle((x, y, x + wide - 2, y + LINE - 2), fill=colour)
            ink = INK if sum(colour) > 380 else PAPER
            write(draw, (x + 3, y), f"{values[r, c]:.2f}", FONT - 2, ink)
    return sheet
