"""Pictures of maps: overlays, grids, strips, animations, plots.

Colour tables are matplotlib's where it is installed; without it, those of ``BUILT_IN`` (33
entries of matplotlib's own tables, linear in between, within 2 of 255).
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import os
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from xattn import maps

COLORMAP = "inferno"
OPACITY = 0.65
_NOISE = ("attentions", "transformer_blocks", "attn2", "processor")
GREY = (128, 128, 128)
INK, FAINT, PAPER = (28, 28, 34), (96, 96, 104), (255, 255, 255)
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
    """Gives the 256 colours of a colormap, uint8 (256, 3).

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
    """Gives a map in colours: 0 the first of the colormap, ``top`` (the maximum) the last."""
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
    """Gives an image with a map over it.

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
    sized = maps.to_grid(heat, (under.height, under.width))
    return Image.blend(under, paint(sized, colormap, top), opacity)


def picture(image: Image.Image | None, grid: tuple[int, int]) -> Image.Image:
    """Gives an image in RGB, or grey of eight times the grid's size."""
    if image is None:
        return Image.new("RGB", (grid[1] * 8, grid[0] * 8), GREY)
    if not isinstance(image, Image.Image):
        raise ValueError(f"image must be a PIL image, got {type(image).__name__}")
    return image.convert("RGB")


# -- words


def text_runs(text: str, size: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Splits a text by the font that has its glyphs; what no font has becomes an escape.

    Pillow's own font first, then DejaVu, which comes with matplotlib, then what the system has.
    """
    runs: list[tuple[ImageFont.FreeTypeFont, str]] = []
    for char in text:
        font = next((f for f in _fonts(size) if _has(f, char)), None) or _system_font(char, size)
        shown = char
        if font is None:
            code = ord(char)
            font = _fonts(size)[0]
            shown = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        if runs and runs[-1][0] is font:
            runs[-1] = (font, runs[-1][1] + shown)
        else:
            runs.append((font, shown))
    return runs


def text_width(text: str, size: int) -> int:
    """Gives how many pixels a text is wide."""
    return math.ceil(sum(font.getlength(part) for font, part in text_runs(text, size)))


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    fill: tuple[int, int, int] = INK,
) -> None:
    """Writes one line of text with its top left corner at (x, y)."""
    x, y = at
    ascent = _fonts(size)[0].getmetrics()[0]
    for font, part in text_runs(text, size):
        draw.text((x, y + ascent), part, font=font, fill=fill, anchor="ls")
        x += font.getlength(part)


def wrap(text: str, size: int, width: int, lines: int = 3) -> list[str]:
    """Breaks a text into lines of at most a width; what doesn't fit ends in an ellipsis."""
    broken, rest = [""], text.strip()
    for piece in re.findall(r"\S+\s*|\s+", rest):
        if broken[-1] and text_width(broken[-1] + piece.rstrip(), size) > width:
            broken.append("")
        for char in piece:  # a word longer than the line breaks anywhere
            if broken[-1] and text_width((broken[-1] + char).rstrip(), size) > width:
                broken.append("")
            broken[-1] += char
    broken = [line.rstrip() for line in broken]
    if len(broken) > lines:
        last = broken[lines - 1]
        while last and text_width(f"{last}...", size) > width:
            last = last[:-1]
        broken = [*broken[: lines - 1], f"{last}..."]
    return broken


@cache
def _fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = [ImageFont.load_default(size)]
    with contextlib.suppress(ImportError, OSError):
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        fonts.append(ImageFont.truetype(str(path), size))
    return tuple(font for font in fonts if isinstance(font, ImageFont.FreeTypeFont))


@lru_cache(4096)
def _system_font(char: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Gives a font of the system that has a character, such as one of Chinese or of symbols."""
    if not char.isprintable():
        return None
    for path in _system_fonts():
        if ord(char) in _characters(path):
            with contextlib.suppress(OSError):  # a font of pictures, of one size
                return _opened(path, size)
    return None


@cache
def _system_fonts() -> tuple[str, ...]:
    with contextlib.suppress(ImportError):
        from matplotlib import font_manager

        return tuple(sorted(font_manager.findSystemFonts()))
    return ()


@cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    with contextlib.suppress(OSError, RuntimeError):
        return frozenset(FT2Font(path).get_charmap())
    return frozenset()


@cache
def _opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(4096)
def _has(font: ImageFont.FreeTypeFont, char: str) -> bool:
    if char == " ":
        return True
    if not char.isprintable():
        return False
    return bytes(font.getmask(char)) != bytes(font.getmask("\uffff"))  # the box of "no glyph"


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
    """Lays out pictures in labelled rows and columns.

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
    width, height = _fit(first.size, side)
    font = max(13, side // 11)
    line, gap = round(font * 1.35), max(4, side // 32)
    left = [wrap(label, font, side, max(1, height // line)) for label in rows]
    above = [wrap(label, font, width) for label in columns]
    room_left = max((text_width(t, font) for lines in left for t in lines), default=0)
    room_left += 2 * gap if rows else 0
    room_above = max(map(len, above), default=0) * line + (gap if columns else 0)
    room_title = line + gap if title else 0
    x0, y0 = gap + room_left, gap + room_title + room_above
    across = max(map(len, cells))
    small = max(11, side // 14)
    below = round(small * 1.35) if notes else 0
    total = (x0 + across * (width + gap), y0 + len(cells) * (height + below + gap))
    if title:
        total = (max(total[0], text_width(title, font) + 2 * gap), total[1])
    sheet = Image.new("RGB", total, PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (x0, gap), title, font)
    for c, lines in enumerate(above):
        for n, text in enumerate(lines):
            inset = (width - text_width(text, font)) / 2
            top = y0 - gap / 2 - (len(lines) - n) * line
            write(draw, (x0 + c * (width + gap) + inset, top), text, font)
    for r, lines in enumerate(left):
        middle = y0 + r * (height + below + gap) + (height - len(lines) * line) / 2
        for n, text in enumerate(lines):
            x = x0 - 2 * gap - text_width(text, font)
            write(draw, (x, middle + n * line), text, font)
    for r, row in enumerate(cells):
        for c, cell in enumerate(row):
            if cell is not None:
                corner = (x0 + c * (width + gap), y0 + r * (height + below + gap))
                sheet.paste(_sized(cell, (width, height), smooth), corner)
    for r, texts in enumerate(notes):
        for c, text in enumerate(texts):
            inset = (width - text_width(text, small)) / 2
            top = y0 + r * (height + below + gap) + height + small * 0.1
            write(draw, (x0 + c * (width + gap) + inset, top), text, small, FAINT)
    return sheet


def strip(
    images: Sequence[Image.Image], labels: Sequence[str], *, title: str = "", side: int = 192
) -> Image.Image:
    """Lays out the pictures of a sweep side by side, each under its label."""
    return table([list(images)], columns=labels, title=title, side=side)


def edits(
    source: Image.Image,
    images: Sequence[Image.Image],
    labels: Sequence[str],
    masks: Sequence[Any] | None = None,
    *,
    side: int = 256,
) -> Image.Image:
    """Lays out the source beside its edits, and below each edit the mask it was held to.

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
    """Gives an image with everything outside a mask paled to grey.

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
) -> Image.Image:
    """Draws entropy (layers, steps) as a table of colours, with a bar that gives the numbers."""
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
        x = x0 + (s + 0.5) * plot_w / steps - text_width(str(s), font) / 2
        write(draw, (x, y0 + plot_h + gap / 2), str(s), font)
    caption = "step"
    write(
        draw,
        (x0 + (plot_w - text_width(caption, font)) / 2, y0 + plot_h + line + gap / 2),
        caption,
        font,
    )
    _bar(sheet, (x0 + plot_w + gap, y0, 18, plot_h), (low, high), colormap, font)
    return sheet


def _bar(
    sheet: Image.Image,
    box: tuple[int, int, int, int],
    ends: tuple[float, float],
    colormap: str,
    font: int,
) -> None:
    """Draws a colour bar in (x, y, width, height) with its numbers to the right."""
    x, y, width, height = box
    ramp = Image.fromarray(color_table(colormap)[::-1][:, None])  # (256, 1), high on top
    sheet.paste(ramp.resize((width, height), Image.Resampling.NEAREST), (x, y))
    draw, line = ImageDraw.Draw(sheet), round(font * 1.35)
    for share in (0.0, 0.5, 1.0):
        value = ends[1] + share * (ends[0] - ends[1])
        write(draw, (x + width + 5, y + share * (height - line)), f"{value:.3f}", font)


# -- moving pictures


def linear_previews(estimates: Any, final: Image.Image) -> list[Image.Image]:
    """Gives pictures of clean latents, by the colours that the last of them came to have.

    A latent pixel's colour is nearly linear in its channels; the map between them is fitted, by
    least squares, to the last estimate and the final image, so that any model's latents can be
    shown without its decoder.

    Args:
        estimates: (steps, channels, height, width).
        final: the image that the run ended with.
    """
    latents = np.asarray(estimates, dtype=np.float64)
    steps, channels, height, width = latents.shape
    small = final.convert("RGB").resize((width, height), Image.Resampling.BOX)
    colors = np.asarray(small, dtype=np.float64).reshape(-1, 3)
    flat = latents.transpose(0, 2, 3, 1).reshape(steps, -1, channels)
    known = np.concatenate([flat, np.ones((*flat.shape[:2], 1))], axis=2)
    matrix = np.linalg.lstsq(known[-1], colors, rcond=None)[0]
    shown = (known @ matrix).clip(0, 255).round().astype(np.uint8)
    size = final.size
    return [
        Image.fromarray(each.reshape(height, width, 3)).resize(size, Image.Resampling.BICUBIC)
        for each in shown
    ]


def frames(
    heats: Sequence[Any],
    pictures: Sequence[Image.Image | None],
    *,
    label: str = "",
    opacity: float = OPACITY,
    colormap: str = COLORMAP,
    side: int = 512,
) -> list[Image.Image]:
    """Draws a map of each step on the image as it forms, over a line that names the step.

    Args:
        heats: the map of each step; they share one scale.
        pictures: an image for each step, or a single one for all.
        label: what the maps are of.
        opacity: of the colours.
        colormap: a name of matplotlib's.
        side: the longer side of the picture at most, and at least half as long.
    """
    if len(pictures) not in (1, len(heats)):
        raise ValueError(f"previews: {len(pictures)} pictures for {len(heats)} steps")
    arrays = [np.asarray(heat) for heat in heats]
    top = max(float(array.max()) for array in arrays)
    drawn = []
    for step, array in enumerate(arrays):
        under = picture(pictures[step % len(pictures)], (array.shape[0], array.shape[1]))
        longer = min(side, max(side // 2, *under.size))
        under = _sized(under, _fit(under.size, longer), smooth=True)
        shown = overlay(array, under, opacity=opacity, colormap=colormap, top=top)
        drawn.append(_captioned(shown, label, step, len(arrays)))
    return drawn


def _captioned(shown: Image.Image, label: str, step: int, steps: int) -> Image.Image:
    font = max(13, shown.width // 24)
    line = round(font * 1.7)
    sheet = Image.new("RGB", (shown.width, shown.height + line + 4), PAPER)
    sheet.paste(shown, (0, 0))
    draw = ImageDraw.Draw(sheet)
    done = round(shown.width * (step + 1) / steps)
    draw.rectangle((0, shown.height, done - 1, shown.height + 3), fill=INK)
    count = f"step {step}"
    room = shown.width - text_width(count, font) - 3 * font
    at = shown.height + 4 + round(font * 0.15)
    write(draw, (font // 2, at), wrap(label, font, max(room, font), 1)[0], font)
    write(draw, (shown.width - text_width(count, font) - font // 2, at), count, font)
    return sheet


def animate(
    path: str | os.PathLike[str], frames: Sequence[Image.Image], *, milliseconds: int = 120
) -> None:
    """Writes frames as a looping animation; the last one stays six times as long.

    Raises:
        ValueError: the path does not end in .gif, .webp, .png or .apng.
    """
    kinds = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".apng": "PNG"}
    kind = kinds.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"path must end in .gif, .webp, .png or .apng; got {str(path)!r}")
    if not frames:
        raise ValueError("frames is empty: there is nothing to animate")
    durations = [milliseconds] * (len(frames) - 1) + [6 * milliseconds]
    options: dict[str, Any] = {"quality": 85} if kind == "WEBP" else {}
    frames[0].save(
        path, format=kind, save_all=True, append_images=list(frames[1:]),
        duration=durations, loop=0, **options,
    )  # fmt: skip


# -- small things


def spread(count: int, most: int = 6) -> list[int]:
    """Gives at most so many indices below ``count``, evenly, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def shortened(names: Sequence[str]) -> list[str]:
    """Gives layer names a reader can take in: ``down_blocks.0.attentions.1 ...`` as ``down 0.1``.

    Where that would make two of them equal, the names stay.
    """
    short = []
    for name in names:
        parts = [p for p in name.split(".") if p not in _NOISE]
        text = ".".join(parts)
        text = re.sub(r"\b(down|up|mid)_blocks?\.?", r"\1 ", text).strip()
        short.append(text)
    return short if len(set(short)) == len(short) else list(names)


def size_text(nbytes: int) -> str:
    """Gives a number of bytes as one reads it: ``12.3 MB``."""
    value, unit = float(nbytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def number_text(value: float) -> str:
    """Gives a number as short as one reads it: ``0.0123``, ``4.1e-07``."""
    return f"{value:.3g}"


def png(image: Image.Image) -> bytes:
    """Gives an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    """Gives an image as a ``data:`` address."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _sized(image: Image.Image, size: tuple[int, int], smooth: bool) -> Image.Image:
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return image.convert("RGB").resize(size, how)
