"""Text in pictures: fonts for every script, width, wrapping."""

from __future__ import annotations

import contextlib
import math
import re
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

INK, FAINT, PAPER = (28, 28, 34), (96, 96, 104), (255, 255, 255)


# -- words


def text_runs(text: str, size: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
    """Split a text by the font that has its glyphs; what no font has becomes an escape.

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
    """Return how many pixels a text is wide."""
    return math.ceil(sum(font.getlength(part) for font, part in text_runs(text, size)))


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    fill: tuple[int, int, int] = INK,
) -> None:
    """Write one line of text with its top left corner at (x, y)."""
    x, y = at
    ascent = _fonts(size)[0].getmetrics()[0]
    for font, part in text_runs(text, size):
        draw.text((x, y + ascent), part, font=font, fill=fill, anchor="ls")
        x += font.getlength(part)


def wrap(text: str, size: int, width: int, lines: int = 3) -> list[str]:
    """Break a text into lines of at most a width; what doesn't fit ends in an ellipsis."""
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
    """Return a font of the system that has a character, such as one of Chinese or of symbols."""
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
