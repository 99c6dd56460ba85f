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
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import scene
from xattn.views import sheets

PROMPT = "a red car on a green lawn"
GIVEN = 30_000_009  # a scene that no model was trained on
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


def arrowed(source: Any, edits: Any, labels: Sequence[str]) -> Image.Image:
    """Lay out a source and its edits, from the same noise."""
    return sheets.edits(source, edits, ["source", *labels])


def of_unet(options: dict[str, Any], seed: int, out: Path) -> None:
    """Draw what the first model shows: words by steps, edits of several kinds, a sweep."""
    pipe = xattn.demo()
    pipe.set_progress_bar_config(disable=True)
    with xattn.record(pipe) as trace:
        image = pipe(PROMPT, generator=noise(seed), **options).images[0]
    small(trace.grid(["red", "car", "green", "lawn"]), out / "words.png")
    small(trace.evolution("car").plot(), out / "entropy.png", 900)

    def edited(*edits: Any) -> Any:
        return xattn.edit(pipe, PROMPT, *edits, generator=noise(seed), **options)

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
    small(stack(rows), out / "first.png", 1080)

    names = ("blue", "yellow", "purple", "white")
    colours = edited(*(xattn.Replace("red", name) for name in names))
    small(arrowed(colours.source, colours.images, names), out / "recolour.png")
    swaps = edited(*(
        [xattn.Replace("car", noun), xattn.LocalBlend("car")] for noun in ("boat", "house", "mug")
    ))  # fmt: skip
    labels = ["source", "boat", "house", "mug"]
    small(sheets.edits(swaps.source, swaps.images, labels, swaps.masks), out / "swap.png")
    nights = edited(
        xattn.Refine(f"{PROMPT} at night"),
        xattn.Refine("a red car and a white star on a green lawn"),
    )
    labels = ["+ at night", "+ and a white star"]
    small(arrowed(nights.source, nights.images, labels), out / "refine.png")
    sweep = xattn.sweep(
        pipe, PROMPT, "red", [-1, 0, 0.5, 1, 1.5, 2], generator=noise(seed), **options
    )
    small(sweep.strip(), out / "sweep.png")


def of_model(model: Any, options: dict[str, Any], seed: int, out: Path) -> None:
    """Draw the same of each model: what it draws, a given picture, edits, and what words cause."""
    pipe: Any = xattn.demo(model)
    pipe.set_progress_bar_config(disable=True)
    with xattn.record(pipe) as trace:
        image = pipe(PROMPT, generator=noise(seed), **options).images[0]
    given = scene(GIVEN)
    told = xattn.probe(pipe, given.image, given.caption)
    words = (("red", "car", "lawn"), ("ball", "house", "road"))
    rows = []
    for picture, seen, names in zip((image, given.image), (trace, told), words, strict=True):
        cells = [picture, *(seen.heatmap(word).overlay(picture) for word in names)]
        rows.append(sheets.table([cells], columns=["", *names], side=200))
    # joint attention decides between day and night in its first steps
    shares = {"cross_steps": 0.1, "self_steps": 0.1} if model == "mmdit" else {}
    result = xattn.edit(
        pipe, PROMPT, xattn.Replace("red", "blue"),
        [xattn.Replace("car", "boat"), xattn.LocalBlend("car")],
        xattn.Refine(f"{PROMPT} at night", **shares), generator=noise(seed), **options,
    )  # fmt: skip
    labels = ["", "red → blue", "car → boat", "+ at night"]
    rows.append(sheets.table([[result.source, *result.images]], columns=labels, side=200))
    small(stack(rows), out / f"model-{model}.png", 840)
    small(xattn.attribute(pipe, trace).bar(), out / f"why-{model}.png", 700)


def of_any_word(out: Path) -> None:
    """Draw the words of nobody's prompt on a given picture."""
    pipe = xattn.demo()
    given = scene(GIVEN)
    names = [word for word in dict.fromkeys(given.caption.split()) if word in given.masks]
    trace = xattn.probe(pipe, given.image, "", also=names, presence=True)
    maps = trace.concepts()
    cells = [maps[name].overlay() for name in names]
    row = sheets.table([[given.image, *cells]], columns=["the picture", *names], side=180)
    things = trace.concepts(["ball", "house", "road"]).segmentation().overlay()
    large = things.resize((2 * things.width, 2 * things.height), Image.Resampling.LANCZOS)
    small(stack([row, large]), out / "any-word.png", 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=("unet", "models", "any-word"), help="draw these pictures alone"
    )
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    options = {"num_inference_steps": chosen.steps, "guidance_scale": chosen.guidance}
    if chosen.only in (None, "unet"):
        of_unet(options, chosen.seed, chosen.out)
    if chosen.only in (None, "models"):
        for model in MODELS:
            of_model(model, options, chosen.seed, chosen.out)
    if chosen.only in (None, "any-word"):
        of_any_word(chosen.out)


if __name__ == "__main__":
    main()
