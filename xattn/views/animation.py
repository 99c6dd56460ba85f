"""Previews of forming images, and animations of maps over the steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from xattn.views.colours import COLORMAP, OPACITY, overlay, picture
from xattn.views.lettering import INK, PAPER, text_width, wrap, write
from xattn.views.sheets import fitted_size, sized

# -- moving pictures


def linear_previews(estimates: Any, final: Image.Image) -> list[Image.Image]:
    """Return pictures of clean latents, by the colours that the last of them came to have.

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
    axis: str = "step",
) -> list[Image.Image]:
    """Draw a map of each step on the image as it forms, over a line that names the step.

    Args:
        heats: the map of each step, or of each frame of a video; they share one scale.
        pictures: an image for each, or a single one for all.
        label: what the maps are of.
        opacity: of the colours.
        colormap: a name of matplotlib's.
        side: the longer side of the picture at most, and at least half as long.
        axis: what the maps follow, "step" or "frame".
    """
    if len(pictures) not in (1, len(heats)):
        raise ValueError(f"previews: {len(pictures)} pictures for {len(heats)} {axis}s")
    arrays = [np.asarray(heat) for heat in heats]
    top = max(float(array.max()) for array in arrays)
    drawn = []
    for step, array in enumerate(arrays):
        under = picture(pictures[step % len(pictures)], (array.shape[0], array.shape[1]))
        longer = min(side, max(side // 2, *under.size))
        under = sized(under, fitted_size(under.size, longer), smooth=True)
        shown = overlay(array, under, opacity=opacity, colormap=colormap, top=top)
        drawn.append(_captioned(shown, label, f"{axis} {step}", (step + 1) / len(arrays)))
    return drawn


def _captioned(shown: Image.Image, label: str, count: str, share: float) -> Image.Image:
    font = max(13, shown.width // 24)
    line = round(font * 1.7)
    sheet = Image.new("RGB", (shown.width, shown.height + line + 4), PAPER)
    sheet.paste(shown, (0, 0))
    draw = ImageDraw.Draw(sheet)
    done = round(shown.width * share)
    draw.rectangle((0, shown.height, done - 1, shown.height + 3), fill=INK)
    room = shown.width - text_width(count, font) - 3 * font
    at = shown.height + 4 + round(font * 0.15)
    write(draw, (font // 2, at), wrap(label, font, max(room, font), 1)[0], font)
    write(draw, (shown.width - text_width(count, font) - font // 2, at), count, font)
    return sheet


def animate(
    path: str | os.PathLike[str], frames: Sequence[Image.Image], *, milliseconds: int = 120
) -> None:
    """Write frames as a looping animation; the last one stays six times as long.

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
