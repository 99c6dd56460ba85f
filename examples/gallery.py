"""Draw the pictures of the README and the gallery: `python examples/gallery.py`.

They go to `docs/images`. Equal seeds give equal pictures on the same machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import xattn
from xattn.views import sheets

PROMPT = "a red car on a green lawn"
ROOT = Path(__file__).parent.parent


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(picture: Image.Image, path: Path, width: int = 1200) -> None:
    """Write a picture for a web page: limited width, and 256 colours if that is enough."""
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    reduced = picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    reduced.save(path, optimize=True)
    print(path)


def stack(rows: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    at = 0
    for row in rows:
        sheet.paste(row, (0, at))
        at += row.height
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    pipe = xattn.demo()
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": chosen.steps, "guidance_scale": chosen.guidance}

    with xattn.record(pipe) as trace:
        image = pipe(PROMPT, generator=noise(chosen.seed), **options).images[0]
    small(trace.grid(["red", "car", "green", "lawn"]), chosen.out / "words.png")
    small(trace.evolution("car").plot(), chosen.out / "entropy.png", 900)

    def edited(*edits: Any) -> Any:
        return xattn.edit(pipe, PROMPT, *edits, generator=noise(chosen.seed), **options)

    edits = edited(
        xattn.Replace("red", "blue"),
        xattn.Refine(f"{PROMPT} at night"),
        [xattn.Replace("car", "boat"), xattn.LocalBlend("car")],
        xattn.Reweight({"red": 2.0}),
    )
    rows = [
        sheets.table(
            [[image, *(trace.heatmap(w).overlay(image) for w in ("red", "car", "lawn"))]],
            columns=["the image", "where red acts", "where car acts", "where lawn acts"],
            side=256,
        ),
        sheets.table([edits.images], side=256, columns=[
            "red → blue", "+ at night", "car → boat, only there", "red × 2",
        ]),
    ]  # fmt: skip
    small(stack(rows), chosen.out / "first.png", 1080)

    colours = edited(*(xattn.Replace("red", c) for c in ("blue", "yellow", "purple", "white")))
    labels = ["source", "blue", "yellow", "purple", "white"]
    small(sheets.edits(colours.source, colours.images, labels), chosen.out / "recolour.png")
    swaps = edited(*(
        [xattn.Replace("car", noun), xattn.LocalBlend("car")] for noun in ("boat", "house", "mug")
    ))  # fmt: skip
    labels = ["source", "boat", "house", "mug"]
    small(sheets.edits(swaps.source, swaps.images, labels, swaps.masks), chosen.out / "swap.png")
    nights = edited(
        xattn.Refine(f"{PROMPT} at night"),
        xattn.Refine("a red car and a white star on a green lawn"),
    )
    labels = ["source", "+ at night", "+ and a white star"]
    small(sheets.edits(nights.source, nights.images, labels), chosen.out / "refine.png")
    sweep = xattn.sweep(
        pipe, PROMPT, "red", [-1, 0, 0.5, 1, 1.5, 2], generator=noise(chosen.seed), **options
    )
    small(sweep.strip(), chosen.out / "sweep.png")


if __name__ == "__main__":
    main()
