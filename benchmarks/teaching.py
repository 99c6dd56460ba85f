"""Measurement of teaching: does a LoRA taught by masks ground words better, with nothing lost?

`python -m benchmarks.teaching --model contextual --steps 300` trains the LoRA of
`examples/teach.py` and measures, before and after, on scenes never trained on: IoU of words' maps
with their masks (all layers, five noise levels, the threshold chosen on other scenes), and what
the judge sees in pictures drawn from captions. It writes `teaching-MODEL.json` and `.md`.
Intervals are 95 % bootstrap intervals over scenes.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.judge import Judge, train_judge, verdicts
from benchmarks.tally import RESULTS, Tally, percent
from benchmarks.toyland_maps import (
    CHOICE_SEED,
    GROUND_SEED,
    LEVELS,
    Choice,
    best_threshold,
    heat,
    ious,
    points,
    record,
)
from benchmarks.toyland_pictures import DRAW_SEED, decode, generate, score_picture
from xattn import toyland
from xattn.toyland.scenes import scene

EXAMPLE = Path(__file__).parent.parent / "examples" / "teach.py"
DRAWN = ("object", "object colour", "ground colour", "number of objects")


def measure_maps(pipe: Any, count: int) -> dict[str, list[float]]:
    """Return IoU and pointing of each word of held-out scenes, and the words' scenes."""
    chosen_on, layers = record(pipe, [scene(CHOICE_SEED + n) for n in range(count // 2)])
    words, _ = record(pipe, [scene(GROUND_SEED + n) for n in range(count)])
    choice = Choice(tuple(range(len(LEVELS))), tuple(range(len(layers))))
    threshold, _ = best_threshold(heat(chosen_on, choice), chosen_on)
    heats = heat(words, choice)
    return {
        "iou": ious(heats, words, threshold),
        "pointing": [float(point) for point in points(heats, words)],
        "scene": [float(word.scene) for word in words],
    }


def measure_drawing(pipe: Any, judge: Judge, count: int) -> Tally:
    """Draw captions of unseen seeds and score them."""
    wanted, tally = [scene(DRAW_SEED + n) for n in range(count)], Tally()
    latents = generate(pipe, [one.caption for one in wanted], [one.seed for one in wanted])
    images = decode(pipe, latents)
    for one, found in zip(wanted, verdicts(judge, images), strict=True):
        score_picture(one, found, tally)
    return tally


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return each figure before, after, and its change, with intervals over scenes."""
    tallies = {"before": Tally(), "after": Tally(), "change": Tally()}
    for name in ("iou", "pointing"):
        for was, now, owner in zip(
            before["maps"][name], after["maps"][name], before["maps"]["scene"], strict=True
        ):
            tallies["before"].add(name, was, int(owner))
            tallies["after"].add(name, now, int(owner))
            tallies["change"].add(name, now - was, int(owner))
    for name in DRAWN:
        first, owners = before["drawing"].scores[name]
        second, _ = after["drawing"].scores[name]
        for was, now, owner in zip(first, second, owners, strict=True):
            tallies["before"].add(name, was, owner)
            tallies["after"].add(name, now, owner)
            tallies["change"].add(name, now - was, owner)
    return {when: tally.summary() for when, tally in tallies.items()}


def measure(
    pipe: Any, judge: Judge, teach: Any, count: int, **options: Any
) -> tuple[dict[str, Any], list[float]]:
    """Measure, teach, and measure again; return the figures and the losses."""

    def now() -> dict[str, Any]:
        return {"maps": measure_maps(pipe, count), "drawing": measure_drawing(pipe, judge, count)}

    before = now()
    start = time.process_time()
    losses = teach(pipe, [scene(n) for n in range(400)], **options)
    seconds = time.process_time() - start
    return {**compared(before, now()), "cpu seconds of teaching": seconds}, losses


def markdown(result: dict[str, Any]) -> str:
    """Write the figures as a page."""
    lines = [
        f"# Teaching: figures of {result['model']}", "",
        f"Made by `python -m benchmarks.teaching --model {result['model']}`: a LoRA on "
        f"cross-attention, {result['steps']} steps; scenes and captions it never saw. In brackets "
        "the 95 % bootstrap interval over scenes, and how many were judged.", "",
        "| | before | after | change |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in ("iou", "pointing", *DRAWN):
        cells = " | ".join(percent(result[when][name]) for when in ("before", "after", "change"))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teaching", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="scenes, and captions")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", choices=["unet", "contextual"], default="contextual")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = toyland.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    teach = runpy.run_path(str(EXAMPLE))["teach"]
    figures, losses = measure(
        pipe, train_judge(options.judge), teach, options.count, steps=options.steps
    )
    result = {"model": options.model, "steps": options.steps, **figures, "losses": losses}
    name = f"teaching-{options.model}"
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / f"{name}.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
