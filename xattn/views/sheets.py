"""Tables, strips and sheets of pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xattn.views.colours import color_table
from xattn.views.lettering import FAINT, PAPER, text_width, wrap, write

_NOISE = ("attentions", "transformer_blocks", "attn2", "processor")


# -- many pictures in one


def table(
    cells: Sequence[Sequence[Image.Image | None]],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    *,
    title: str = "",
    side: int = 192,
    smooth: bool = True,
    notes: Sequence[Sequence[str]] = (),
) -> Image.Image:
    """Lay out pictures in labelled rows and columns.

    Args:
        cells: rows of pictures of one shape; ``None`` leaves a cell empty.
        rows: a label for each row, to its left.
        columns: a label for each column, above it.
        title: a line above everything.
        side: the longer side of a cell in pixels.
        smooth: interpolate when a picture is enlarged, or show its pixels.
        notes: a line under each cell, such as what its last colour stands for.

    Raises:
        ValueError: there are no pictures, or something that is none, or labels for other counts.
    """
    first = _checked(cells, rows, columns)
    font, small = max(13, side // 11), max(11, side // 14)
    line, gap = round(font * 1.35), max(4, side // 32)
    width, height = fitted_size(first.size, side)
    left = [wrap(label, font, side, max(1, height // line)) for label in rows]
    above = [wrap(label, font, width) for label in columns]
    room_left = max((text_width(t, font) for lines in left for t in lines), default=0)
    room_above = max(map(len, above), default=0) * line + (gap if columns else 0)
    corner = (
        gap + room_left + (2 * gap if rows else 0),
        gap + (line + gap if title else 0) + room_above,
    )
    layout = _Layout(corner, (width, height), gap, round(small * 1.35) if notes else 0)
    total = layout.at(len(cells), max(map(len, cells)))
    if title:
        total = (max(total[0], text_width(title, font) + 2 * gap), total[1])
    sheet = Image.new("RGB", total, PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (corner[0], gap), title, font)
    _label(draw, layout, above, left, font)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            if cell is not None:
                sheet.paste(sized(cell, (width, height), smooth), layout.at(r, c))
    for r, texts in enumerate(notes):
        for c, text in enumerate(texts):
            x, y = layout.at(r, c)
            inset = (width - text_width(text, small)) / 2
            write(draw, (x + inset, y + height + small * 0.1), text, small, FAINT)
    return sheet


@dataclass(frozen=True)
class _Layout:
    """The places of a table's cells, in pixels.

    Attributes:
        corner: (x, y) of the first cell.
        cell: (width, height) of every cell.
        gap: between cells.
        below: room for a note under each cell.
    """

    corner: tuple[int, int]
    cell: tuple[int, int]
    gap: int
    below: int

    def at(self, row: int, column: int) -> tuple[int, int]:
        """Return the (x, y) of a cell's upper left corner."""
        (x0, y0), (width, height) = self.corner, self.cell
        return x0 + column * (width + self.gap), y0 + row * (height + self.below + self.gap)


def _checked(
    cells: Sequence[Sequence[Image.Image | None]], rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """Return the first picture of a table, whose cells and labels are checked."""
    strange = [c for row in cells for c in row if not isinstance(c, Image.Image | None)]
    if strange:
        raise ValueError(
            f"a table is made of PIL images, got {type(strange[0]).__name__}; a pipeline gives "
            "them with output_type='pil', its default"
        )
    first = next((cell for row in cells for cell in row if cell is not None), None)
    if first is None:
        raise ValueError("cells holds no picture")
    for name, labels, count in (
        ("rows", rows, len(cells)),
        ("columns", columns, max(map(len, cells))),
    ):
        if labels and len(labels) != count:
            raise ValueError(f"{name}: {len(labels)} labels for {count} {name}")
    return first


def _label(
    draw: ImageDraw.ImageDraw,
    layout: _Layout,
    above: Sequence[Sequence[str]],
    left: Sequence[Sequence[str]],
    font: int,
) -> None:
    """Write the lines of the columns' labels above the table, of the rows' to its left."""
    (x0, y0), (width, height), line = layout.corner, layout.cell, round(font * 1.35)
    for c, lines in enumerate(above):
        for n, text in enumerate(lines):
            inset = (width - text_width(text, font)) / 2
            top = y0 - layout.gap / 2 - (len(lines) - n) * line
            write(draw, (layout.at(0, c)[0] + inset, top), text, font)
    for r, lines in enumerate(left):
        middle = layout.at(r, 0)[1] + (height - len(lines) * line) / 2
        for n, text in enumerate(lines):
            x = x0 - 2 * layout.gap - text_width(text, font)
            write(draw, (x, middle + n * line), text, font)


def strip(
    images: Sequence[Image.Image], labels: Sequence[str], *, title: str = "", side: int = 192
) -> Image.Image:
    """Lay out the pictures of a sweep side by side, each under its label."""
    return table([list(images)], columns=labels, title=title, side=side)


def edits(
    source: Image.Image,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    masks: Sequence[Any] | None = None,
    *,
    side: int = 256,
) -> Image.Image:
    """Lay out the source beside its edits, and below each edit the mask it was held to.

    Args:
        source: the image before.
        images: the edited images.
        labels: one for the source, then one for each edit.
        masks: for each edit an array of truth values, (height, width) or (steps, height, width),
            of which the last counts; or ``None``.
        side: the longer side of a cell in pixels.

    Raises:
        ValueError: the images are no pictures (``output_type`` was not "pil").
    """
    cells: list[list[Image.Image | None]] = [[source, *images]]
    pictures = all(isinstance(image, Image.Image) for image in images)
    if pictures and masks is not None and any(mask is not None for mask in masks):
        drawn = [
            None if mask is None else masked(image, mask)
            for image, mask in zip(images, masks, strict=True)
        ]
        cells.append([None, *drawn])
    return table(cells, ["image", "mask"][: len(cells)], labels, side=side)


def masked(image: Image.Image, mask: Any) -> Image.Image:
    """Return an image with everything outside a mask paled to grey.

    The mask is (height, width) of any size, or (steps, height, width), of which the last counts.
    """
    inside = np.asarray(mask).astype(bool)
    if inside.ndim not in (2, 3):
        raise ValueError(f"a mask is (height, width), got the shape {inside.shape}")
    inside = inside if inside.ndim == 2 else inside[-1]
    hole = Image.fromarray(inside.astype(np.uint8) * 255)
    hole = hole.resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.75)
    return Image.composite(image.convert("RGB"), pale, hole)


def evolution(
    entropy: NDArray[np.float64],
    names: Sequence[str],
    *,
    word: str = "",
    size: tuple[int, int] = (480, 900),
    colormap: str = "viridis",
    levels: Sequence[float] = (),
) -> Image.Image:
    """Draw entropy (layers, steps) as a table of colours, with a bar that gives the numbers.

    The columns are named by their ``levels``, those of a probe, or else by the step.
    """
    height, width = size
    low, high = float(entropy.min()), float(entropy.max())
    level = (entropy - low) / (high - low) if high > low else entropy * 0
    font, gap = 14, 8
    line = round(font * 1.35)
    labels = shortened(names)
    x0 = 2 * gap + max(text_width(label, font) for label in labels)
    y0, bar = 2 * gap + line, 18 + gap + text_width("0.000", font)
    plot_w = max(len(entropy[0]), width - x0 - bar - 3 * gap)
    plot_h = max(len(labels) * line, height - y0 - 2 * line - 2 * gap)
    sheet = Image.new("RGB", (x0 + plot_w + bar + 3 * gap, y0 + plot_h + 2 * line + 2 * gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"entropy of {word!r}: low is focused, high is spread" if word else "entropy"
    write(draw, (x0, gap), title, font)
    colors = color_table(colormap)[(level * 255).round().astype(np.uint8)]
    sheet.paste(
        Image.fromarray(colors).resize((plot_w, plot_h), Image.Resampling.NEAREST), (x0, y0)
    )
    for r, label in enumerate(labels):
        y = y0 + (r + 0.5) * plot_h / len(labels) - line / 2
        write(draw, (x0 - gap - text_width(label, font), y), label, font)
    steps = entropy.shape[1]
    for s in spread(steps, max(2, min(steps, plot_w // 60))):
        name = f"{levels[s]:g}" if levels else str(s)
        x = x0 + (s + 0.5) * plot_w / steps - text_width(name, font) / 2
        write(draw, (x, y0 + plot_h + gap / 2), name, font)
    caption = "level" if levels else "step"
    write(
        draw,
        (x0 + (plot_w - text_width(caption, font)) / 2, y0 + plot_h + line + gap / 2),
        caption,
        font,
    )
    _bar(sheet, (x0 + plot_w + gap, y0, 18, plot_h), (low, high), colormap, font)
    return sheet


def bars(
    names: Sequence[str], values: NDArray[np.float64], *, title: str = "", width: int = 640
) -> Image.Image:
    """Draw a bar for each name, from 0 to its value, and the value behind it."""
    font, gap = 14, 8
    line, labels = round(font * 1.35), shortened(names)
    numbers = [f"{value:.3g}" for value in values]
    x0 = 2 * gap + max(text_width(label, font) for label in labels)
    room = max(40, width - x0 - 3 * gap - max(text_width(number, font) for number in numbers))
    most = max(float(np.abs(values).max()), 1e-12)
    height = line * (len(labels) + 1) + 3 * gap
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (x0, gap), title, font)
    for r, (label, value, number) in enumerate(zip(labels, values, numbers, strict=True), start=1):
        y, long = gap + r * line, round(room * max(float(value), 0.0) / most)
        write(draw, (x0 - gap - text_width(label, font), y), label, font)
        draw.rectangle((x0, y + 4, x0 + long, y + line - 2), fill=(48, 80, 140))
        write(draw, (x0 + long + gap, y), number, font)
    return sheet


def _bar(
    sheet: Image.Image,
    box: tuple[int, int, int, int],
    ends: tuple[float, float],
    colormap: str,
    font: int,
) -> None:
    """Draw a colour bar in (x, y, width, height) with its numbers to the right."""
    x, y, width, height = box
    ramp = Image.fromarray(color_table(colormap)[::-1][:, None])  # (256, 1), high on top
    sheet.paste(ramp.resize((width, height), Image.Resampling.NEAREST), (x, y))
    draw, line = ImageDraw.Draw(sheet), round(font * 1.35)
    for share in (0.0, 0.5, 1.0):
        value = ends[1] + share * (ends[0] - ends[1])
        write(draw, (x + width + 5, y + share * (height - line)), f"{value:.3f}", font)


# -- small things


def spread(count: int, most: int = 6) -> list[int]:
    """Return at most so many indices below ``count``, evenly, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def shortened(names: Sequence[str]) -> list[str]:
    """Return layer names a reader can take in: ``down_blocks.0.attentions.1 ...`` as ``down 0.1``.

    Where that would make two of them equal, the names stay.
    """
    short = []
    for name in names:
        parts = [p for p in name.split(".") if p not in _NOISE]
        text = ".".join(parts)
        text = re.sub(r"\b(down|up|mid)_blocks?\.?", r"\1 ", text).strip()
        short.append(text)
    return short if len(set(short)) == len(short) else list(names)


def side_by_side(left: Image.Image, right: Image.Image, gap: int = 8) -> Image.Image:
    """Return two pictures of one height next to each other."""
    sheet = Image.new("RGB", (left.width + gap + right.width, left.height), PAPER)
    sheet.paste(left.convert("RGB"), (0, 0))
    sheet.paste(right.convert("RGB"), (left.width + gap, 0))
    return sheet


def png(image: Image.Image) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    """Return an image as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return a size (width, height) scaled so that its longer side is ``side``."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def sized(image: Image.Image, size: tuple[int, int], smooth: bool) -> Image.Image:
    """Return an image in RGB at a size, interpolated bicubically or by nearest pixels."""
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return image.convert("RGB").resize(size, how)
