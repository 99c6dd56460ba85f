"""Draws Toyland: each noun in its own box, each ground with its own texture.

Everything is drawn at four times the size and reduced, so edges are antialiased. Objects are drawn
on transparent layers: an object's mask is where its layer covers more than half of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .world import NIGHT_SKY, PALETTE, RGB, SIDE, SKY, ground_colour

SCALE = 4  # supersampling
GLASS: RGB = (196, 228, 242)
TYRE: RGB = (52, 52, 58)
WOOD: RGB = (128, 88, 56)

Point = tuple[float, float]

ASPECT = {
    "car": 1.6,
    "house": 1.05,
    "tree": 0.8,
    "ball": 1.0,
    "star": 1.05,
    "boat": 1.15,
    "fish": 1.6,
    "mug": 1.15,
}
"""Width over height of each noun's box."""


def shade(colour: RGB, factor: float) -> RGB:
    """Darken (factor below 1) or lighten (above 1, toward white) a colour."""
    if factor <= 1:
        red, green, blue = (round(c * factor) for c in colour)
    else:
        red, green, blue = (round(c + (255 - c) * (factor - 1)) for c in colour)
    return red, green, blue


class Brush:
    """Draw in the unit square of one object's box; y points down."""

    def __init__(self, draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float]):
        self.draw = draw
        self.left, self.top, right, bottom = (SCALE * v for v in box)
        self.width, self.height = right - self.left, bottom - self.top
        self.line = max(SCALE, round(0.026 * math.sqrt(self.width * self.height)))

    def at(self, x: float, y: float) -> Point:
        """Give the pixel of a place in the box."""
        return self.left + x * self.width, self.top + y * self.height

    def polygon(self, points: Sequence[Point], fill: RGB, edge: RGB | None = None) -> None:
        """Fill a polygon, and outline it."""
        path = [self.at(x, y) for x, y in points]
        self.draw.polygon(path, fill=fill)
        if edge is not None:
            self.draw.line([*path, path[0], path[1]], fill=edge, width=self.line, joint="curve")

    def rectangle(
        self, box: Sequence[float], fill: RGB, edge: RGB | None = None, radius: float = 0.0
    ) -> None:
        """Fill a rectangle, its corners rounded by a share of the box's shorter side."""
        corners = [self.at(box[0], box[1]), self.at(box[2], box[3])]
        self.draw.rounded_rectangle(
            corners,
            radius * min(self.width, self.height),
            fill=fill,
            outline=edge,
            width=self.line if edge is not None else 0,
        )

    def ellipse(self, box: Sequence[float], fill: RGB | None, edge: RGB | None = None) -> None:
        """Fill an ellipse, and outline it."""
        corners = [self.at(box[0], box[1]), self.at(box[2], box[3])]
        self.draw.ellipse(
            corners, fill=fill, outline=edge, width=self.line if edge is not None else 0
        )

    def disc(self, x: float, y: float, radius: float, fill: RGB) -> None:
        """Fill a true circle; its radius is a share of the box's height."""
        cx, cy = self.at(x, y)
        r = radius * self.height
        self.draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=fill)


def _car(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.polygon([(0.2, 0.46), (0.32, 0.06), (0.68, 0.06), (0.84, 0.46)], body, edge)
    brush.polygon([(0.29, 0.42), (0.37, 0.16), (0.49, 0.16), (0.49, 0.42)], GLASS)
    brush.polygon([(0.54, 0.42), (0.54, 0.16), (0.64, 0.16), (0.74, 0.42)], GLASS)
    brush.rectangle((0.02, 0.42, 0.98, 0.82), body, edge, radius=0.16)
    for x in (0.24, 0.76):
        brush.disc(x, 0.8, 0.19, TYRE)
        brush.disc(x, 0.8, 0.085, (205, 207, 212))


def _house(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.rectangle((0.1, 0.4, 0.9, 0.98), body, edge)
    brush.polygon([(0.02, 0.43), (0.5, 0.03), (0.98, 0.43)], shade(body, 0.8), edge)
    brush.rectangle((0.2, 0.53, 0.42, 0.73), GLASS, edge)
    brush.rectangle((0.57, 0.56, 0.78, 0.98), WOOD, edge)


def _tree(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.rectangle((0.41, 0.6, 0.59, 0.99), WOOD, shade(WOOD, 0.7))
    parts = [(0.03, 0.26, 0.55, 0.7), (0.45, 0.26, 0.97, 0.7), (0.2, 0.02, 0.8, 0.52)]
    for part in parts:
        brush.ellipse(part, body, edge)
    for part in parts:
        inner = (part[0] + 0.035, part[1] + 0.028, part[2] - 0.035, part[3] - 0.028)
        brush.ellipse(inner, body)


def _ball(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.ellipse((0.02, 0.02, 0.98, 0.98), body, edge)
    brush.ellipse((0.2, 0.16, 0.44, 0.38), shade(body, 1.55))


def _star(brush: Brush, body: RGB, edge: RGB) -> None:
    points = []
    for k in range(10):
        radius = 0.53 if k % 2 == 0 else 0.25
        angle = math.pi * (k / 5 - 0.5)
        points.append((0.5 + 0.94 * radius * math.cos(angle), 0.54 + radius * math.sin(angle)))
    brush.polygon(points, body, edge)


def _boat(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.rectangle((0.47, 0.04, 0.52, 0.72), WOOD)
    brush.polygon([(0.55, 0.06), (0.55, 0.58), (0.93, 0.58)], body, edge)
    brush.polygon([(0.44, 0.16), (0.44, 0.58), (0.12, 0.58)], body, edge)
    brush.polygon([(0.02, 0.67), (0.98, 0.67), (0.8, 0.97), (0.2, 0.97)], body, edge)


def _fish(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.polygon([(0.3, 0.5), (0.02, 0.12), (0.02, 0.88)], body, edge)
    brush.polygon([(0.42, 0.16), (0.6, 0.0), (0.74, 0.18)], shade(body, 0.8), edge)
    brush.ellipse((0.2, 0.1, 0.98, 0.94), body, edge)
    brush.disc(0.8, 0.42, 0.1, (250, 250, 250))
    brush.disc(0.81, 0.42, 0.055, (24, 24, 28))


def _mug(brush: Brush, body: RGB, edge: RGB) -> None:
    brush.rectangle((0.5, 0.22, 0.97, 0.76), body, edge, radius=0.2)
    brush.rectangle((0.56, 0.37, 0.84, 0.61), edge, radius=0.1)
    brush.rectangle((0.03, 0.08, 0.74, 0.97), body, edge, radius=0.1)
    brush.ellipse((0.03, 0.02, 0.74, 0.2), shade(body, 0.72), edge)


_SHAPES: dict[str, Callable[[Brush, RGB, RGB], None]] = {
    "car": _car,
    "house": _house,
    "tree": _tree,
    "ball": _ball,
    "star": _star,
    "boat": _boat,
    "fish": _fish,
    "mug": _mug,
}


def draw_object(
    noun: str, colour: str, box: tuple[float, float, float, float], mirrored: bool
) -> Image.Image:
    """Draw one object on a transparent scene-sized layer, at supersampled size (RGBA)."""
    layer = Image.new("RGBA", (SIDE * SCALE, SIDE * SCALE))
    body = PALETTE[colour]
    edge = shade(body, 1.3) if colour == "black" else shade(body, 0.6)
    if mirrored:
        box = (SIDE - box[2], box[1], SIDE - box[0], box[3])
    _SHAPES[noun](Brush(ImageDraw.Draw(layer), box), body, edge)
    return layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else layer


def _texture(
    draw: ImageDraw.ImageDraw, ground: str, colour: RGB, horizon: int, rng: np.random.Generator
) -> None:
    """Draw a ground's pattern in a slightly darker or lighter tone; it grows toward the viewer."""
    side = SIDE * SCALE
    dark, light = shade(colour, 0.88), shade(colour, 1.22)
    y = float(horizon * SCALE)
    row = 0
    while y < side:
        near = (y - horizon * SCALE) / (side - horizon * SCALE)  # 0 at the horizon, 1 in front
        step = SCALE * (7 + 8 * near)
        offset = step * (row % 2) + float(rng.uniform(-0.3, 0.3)) * step
        width = round(SCALE * (0.9 + 0.9 * near))
        if ground == "lawn":
            for x in np.arange(offset, side, 2 * step):
                tip = y + 0.5 * step
                draw.line([(x - 0.25 * step, y), (x, tip), (x + 0.25 * step, y)], dark, width)
        elif ground == "beach":
            for x in np.arange(offset, side, 1.5 * step):
                radius = 0.11 * step
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=dark)
        elif ground == "sea":
            for x in np.arange(offset - 2 * step, side, 2 * step):
                draw.arc([x, y, x + step, y + 0.6 * step], 20, 160, light, width)
                draw.arc([x + step, y, x + 2 * step, y + 0.6 * step], 200, 340, light, width)
        y += step
        row += 1
    if ground == "road":
        middle = (0.5 + float(rng.uniform(-0.08, 0.08))) * side
        top = horizon * SCALE
        for near, far in ((0.08, 0.2), (0.3, 0.48), (0.62, 0.9)):
            y0, y1 = top + near * (side - top), top + far * (side - top)
            w0, w1 = side * (0.008 + 0.02 * near), side * (0.008 + 0.02 * far)
            path = [(middle - w0, y0), (middle + w0, y0), (middle + w1, y1), (middle - w1, y1)]
            draw.polygon(path, fill=shade(colour, 1.45))


def draw_ground(
    ground: str, colour: str, horizon: int, night: bool, rng: np.random.Generator
) -> Image.Image:
    """Draw sky and ground at supersampled size (RGB)."""
    side = SIDE * SCALE
    image = Image.new("RGB", (side, side), NIGHT_SKY if night else SKY)
    draw = ImageDraw.Draw(image)
    x, y = float(rng.uniform(0.1, 0.9)) * side, float(rng.uniform(0.07, 0.13)) * side
    radius = 0.05 * side
    if night:
        for _ in range(6):
            sx, sy = rng.uniform(0.02, 0.98) * side, rng.uniform(0.02, 0.26) * side
            draw.ellipse([sx - 5, sy - 5, sx + 5, sy + 5], fill=(214, 218, 236))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(246, 240, 206))
    else:
        for dx, dy, r in ((-1.3, 0.2, 0.7), (0, 0, 1.0), (1.3, 0.25, 0.75)):
            cx, cy, size = x + dx * radius, y + dy * radius, r * radius
            draw.ellipse([cx - size, cy - size, cx + size, cy + size], fill=(236, 245, 251))
    tone = ground_colour(colour, night)
    draw.rectangle([0, horizon * SCALE, side, side], fill=tone)
    _texture(draw, ground, tone, horizon, rng)
    draw.line([(0, horizon * SCALE), (side, horizon * SCALE)], shade(tone, 0.75), 2 * SCALE)
    return image


def reduce(image: Image.Image) -> Image.Image:
    """Bring a supersampled picture down to scene size."""
    return image.reduce(SCALE)
