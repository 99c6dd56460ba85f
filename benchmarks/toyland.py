"""Measurement of the bundled models: do they draw their prompt, and does attention ground words?

`python -m benchmarks.toyland` writes `toyland.json`, `toyland.md` and two contact sheets to
`benchmarks/results`; with `--model contextual` or `mmdit` their names end in `-contextual` or
`-mmdit`. `--quick` uses a tenth of the pictures. The maps of the joint-attention model are not
measured here.

Everything is measured on seeds never seen in training. Layers, noise levels and threshold are
chosen on other scenes than the measured ones. Intervals are 95 % bootstrap intervals over scenes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from benchmarks.judge import train_judge
from benchmarks.tally import RESULTS
from benchmarks.toyland_maps import LEVELS, Choice, measure_grounding
from benchmarks.toyland_page import labelled, map_sheet, markdown, sheet
from benchmarks.toyland_pictures import KINDS, STEPS, measure_drawing
from xattn import toyland
from xattn.toyland.bundle import MODELS


def measure_speed(load: Callable[[], StableDiffusionPipeline]) -> dict[str, float]:
    """Time loading, and one image of 20 steps with guidance."""
    start = time.perf_counter()
    pipe = load()
    loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    pipe("a red car", num_inference_steps=2)
    start, work = time.perf_counter(), time.process_time()
    pipe("a red car on a green lawn", num_inference_steps=STEPS)
    return {
        "load seconds": loading,
        "image seconds": time.perf_counter() - start,
        "image cpu seconds": time.process_time() - work,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.toyland", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures")
    parser.add_argument(
        "--only",
        choices=["drawing", "hard", "grounding"],
        help="measure one part, keep the others' figures; hard is a part of drawing",
    )
    parser.add_argument("--model", choices=MODELS, default="unet")
    parser.add_argument("--count", type=int, help="captions of each kind; 200 by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--latents", type=Path, help="keep drawn latents in this folder")
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    def load() -> Any:
        return toyland.demo(options.model, device="cpu")

    count = options.count or (20 if options.quick else 200)
    ending = "" if options.model == "unet" else f"-{options.model}"
    path = options.out / f"toyland{ending}.json"
    result: dict[str, Any] = {}
    if options.only and path.exists():
        result = json.loads(path.read_text())
    if options.only != "hard":
        result["pictures"] = count
    result |= {"model": options.model, "threads": torch.get_num_threads()}
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    if options.only != "grounding":
        judge = train_judge(options.judge)
        if options.only != "hard":
            result["speed"] = measure_speed(load)
        kinds = ("hard",) if options.only == "hard" else KINDS
        new, drawn = measure_drawing(pipe, judge, count, options.latents, kinds)
        result["drawing"] = result.get("drawing", {}) | new
        tiles = [labelled(image, one.caption) for one, image, _ in drawn]
        if options.only != "hard":
            held, hard = tiles[count:][:6], tiles[count + count // 2 :][:12]
            chosen = [*tiles[: min(count, 24)], *held, *hard]
            sheet(chosen, 6).save(options.out / f"toyland-scenes{ending}.png", optimize=True)
    if options.only in (None, "grounding") and options.model != "mmdit":
        result["grounding"] = measure_grounding(pipe, count)
        layers = result["grounding"]["layers"]
        names = result["grounding"]["choices"]["chosen layers"]["layers"]
        choice = Choice(tuple(range(len(LEVELS))), tuple(layers.index(name) for name in names))
        map_sheet(pipe, choice).save(options.out / f"toyland-maps{ending}.png", optimize=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    if "drawing" in result:
        (options.out / f"toyland{ending}.md").write_text(markdown(result))
        print(markdown(result))


if __name__ == "__main__":
    main()
