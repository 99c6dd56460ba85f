"""Sizes, bytes and numbers as people write them."""

from __future__ import annotations

LARGEST = 1000.0
"""The largest guidance or weight that makes sense: half precision overflows beyond it."""


def size_of(text: str) -> tuple[int, int]:
    """Parse a size in pixels, "512" or "768x512" (width x height), into (height, width).

    Raises:
        ValueError: the text is neither form.
    """
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{text!r} is not a size: use 512, or 768x512 (width x height)")
    width, height = int(sides[0]), int(sides[-1])
    return height, width


def number_of(text: str) -> float:
    """Read a number that a model can be multiplied by: finite, in [-1000, 1000].

    Raises:
        ValueError: it is not one.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not abs(value) <= LARGEST:  # a NaN too
        raise ValueError(f"{text!r} is out of range: give a number from -1000 to 1000")
    return value


def size_text(nbytes: int) -> str:
    """Return a number of bytes for people: ``12.3 MB``."""
    value, unit = float(nbytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def number_text(value: float) -> str:
    """Return a number rounded for people: ``0.0123``, ``4.1e-07``."""
    return f"{value:.3g}"
