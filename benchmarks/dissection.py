"""Measurement of dissection: does weakening the heads that know colours change colours sooner?

`python -m benchmarks.dissection --count N` dissects the bundled UNet's heads on some scenes of
Toyland, by intersection over union and by relevance, then draws N other captions with the colour
words taken away from a growing share of the heads, in the order of each table, in its reverse, and
in random orders. The judge of `benchmarks.judge` says which objects still have their colour. A
sooner fall is a smaller area under the curve over the share of heads. It writes `dissection.json`,
`dissection.md` and a picture of the table to `benchmarks/results`. Intervals are 95 % bootstrap
intervals over captions; no scene was trained on, and none is in both halves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import xattn
from benchmarks import machine
from benchmarks.judge import Judge, train_judge, verdicts
from benchmarks.page import table
from benchmarks.tally import RESULTS, interval
from benchmarks.toyland_pictures import GUIDANCE
from xattn import toyland
from xattn.results.dissection import Dissection, Head
from xattn.toyland.scenes import Scene, scene

TABLE_SEED, DRAW_SEED = 18_700_000, 18_800_000
STEPS = 10
SHARES = (0.25, 0.5, 0.75)


def asked(count: int) -> list[Scene]:
    """Return scenes of one object whose colour is said."""
    found: list[Scene] = []
    seed = DRAW_SEED
    while len(found) < count:
        one = scene(seed)
        if len(one.things) == 1 and one.things[0].colour_said:
            found.append(one)
        seed += 1
    return found


def kept(pipe: Any, judge: Judge, scenes: Sequence[Scene]) -> list[float]:
    """Draw scenes' captions; return for each whether an object of the asked colour is there."""
    generators = [torch.Generator().manual_seed(one.seed) for one in scenes]
    drawn = pipe(
        [one.caption for one in scenes],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=generators,
    ).images
    return [
        float(any(seen.colour == one.things[0].colour for seen in found.things[:1]))
        for one, found in zip(scenes, verdicts(judge, drawn), strict=True)
    ]


def weakened(
    pipe: Any, judge: Judge, found: Dissection, order: Sequence[Head], scenes: Sequence[Scene]
) -> list[list[float]]:
    """Return for each share of heads, in an order, whether each caption keeps its colour."""
    rows = []
    for share in SHARES:
        chosen = order[: round(share * len(order))]
        with found.weaken(pipe, "colour", heads=chosen):
            rows.append(kept(pipe, judge, scenes))
    return rows


def measure(pipe: Any, judge: Judge, tables: int, count: int) -> tuple[dict[str, Any], Dissection]:
    """Dissect, and weaken in every order."""
    drawn = [scene(TABLE_SEED + n) for n in range(tables)]
    by = {name: xattn.dissect(pipe, drawn, by=name, layers="all") for name in ("iou", "relevance")}
    scenes = asked(count)
    owners = [one.seed for one in scenes]
    first = by["iou"]
    plain = kept(pipe, judge, scenes)
    with first.weaken(pipe, "colour", heads=first.heads):
        without = kept(pipe, judge, scenes)
    orders = {
        "iou": first.order("colour"),
        "relevance": by["relevance"].order("colour"),
        "iou, reversed": first.order("colour")[::-1],
        "random 0": first.random(0),
        "random 1": first.random(1),
    }
    curves = {
        name: [plain, *weakened(pipe, judge, first, order, scenes), without]
        for name, order in orders.items()
    }
    areas = {name: np.mean([(a + b) / 2 for a, b in _pairs(rows)], axis=0)
             for name, rows in curves.items()}  # fmt: skip
    chance = (areas["random 0"] + areas["random 1"]) / 2
    result = {
        "scenes of the table": tables,
        "captions": count,
        "heads": len(first.heads),
        "curves": {name: [interval(row, owners) for row in rows] for name, rows in curves.items()},
        "area": {name: interval(area.tolist(), owners) for name, area in areas.items()},
        "area below random": {
            name: interval((chance - area).tolist(), owners) for name, area in areas.items()
        },
        "detectors": [
            {"layer": head.layer, "head": head.head, "concept": concept, "iou": value}
            for head, concept, value in first.detectors()
        ],
    }
    return result, first


def _pairs(rows: Sequence[Sequence[float]]) -> list[tuple[Any, Any]]:
    stacked = [np.array(row) for row in rows]
    return list(pairwise(stacked))


def stated(figure: dict[str, float]) -> str:
    """Format a mean with its interval."""
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def markdown(result: dict[str, Any], facts: dict[str, Any]) -> str:
    """Format the figures as a page."""
    shares = ("0", *(f"{share:.0%}" for share in SHARES), "all")
    rows = [
        (name, *(stated(each) for each in curve), stated(result["area below random"][name]))
        for name, curve in result["curves"].items()
    ]
    return "\n\n".join([
        "# Dissection: colours without the heads that know them",
        f"Made by `python -m benchmarks.dissection`: {result['heads']} heads of the bundled UNet, "
        f"dissected on {result['scenes of the table']} scenes; {result['captions']} captions drawn "
        "with the colour words taken away from a share of the heads. How many keep the asked "
        "colour, by the order in which heads go; and how much smaller the area under the curve is "
        "than that of random orders.",
        table(("order", *shares, "area below random"), rows),
        f"*{machine.line(facts)}*",
    ]) + "\n"  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write figures, page and picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dissection", description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="captions drawn; 40 by default")
    parser.add_argument("--scenes", type=int, default=40, help="scenes for the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = toyland.demo(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    result, found = measure(pipe, train_judge(options.judge), options.scenes, options.count)
    facts = machine.facts()
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": facts, "result": result}, indent=1) + "\n"
    (options.out / "dissection.json").write_text(text, "utf-8")
    (options.out / "dissection.md").write_text(markdown(result, facts), "utf-8")
    found.plot().save(options.out / "dissection.png", optimize=True)
    print(markdown(result, facts))
    print(found.table())


if __name__ == "__main__":
    main()
