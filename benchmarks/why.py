"""Measurement of attribution: do scores say which words the picture would change without?

`python -m benchmarks.why --models unet,contextual,mmdit --count N` takes captions of Toyland that
no training saw. The truth is what really happens: every word left out of the caption, and the
picture drawn again from the same noise; the mean squared change of its pixels. Each method's
scores are compared with it by Spearman's rank correlation over the words of a caption; the mean
over captions is stated with its 95 % bootstrap interval, and the difference to attention caption
by caption. `--tune N` compares levels and kinds of absence on other captions first. It writes
`why.json` and `why.md` to `benchmarks/results` after each caption, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import xattn
from benchmarks import machine
from benchmarks.grounding import enlarged, pointed, words_of
from benchmarks.models import digest_of
from benchmarks.page import table
from benchmarks.tally import RESULTS, Tally
from xattn import toyland
from xattn.api.record import instruments_of
from xattn.attribution.attribute import askable, explained
from xattn.attribution.levels import FEW
from xattn.attribution.shapley import Shapley
from xattn.instruments.samples import Samples
from xattn.records.options import Options
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import Scene, scene

TUNE_SEED, COUNT_SEED, POINT_SEED = 17_500_000, 18_000_000, 18_500_000
STEPS, GUIDANCE = 10, 5.0
EIGHT = "a small red car on a green lawn"
TWO = "shapley on two cores"

Scores = Sequence[float]
Kept = Sequence[tuple[float, Tensor]]
Way = Callable[[Any, xattn.Trace, Kept], Scores]
"""A way to score the words of a drawn caption, from its trace and its run's latents."""


def way(**options: Any) -> Way:
    """Return the way that attributes with some options."""
    return lambda pipe, trace, kept: explained(pipe, trace, kept, **options).values.tolist()


def by_attention(measure: str) -> Way:
    """Return the way that takes a measure of each word's heat map, occurrence by occurrence."""
    return lambda pipe, trace, kept: [
        getattr(trace.heatmap(list(word.positions)), measure) for word in trace.run.prompt(0).words
    ]


FIRST = "attention, mean of the map"
WAYS: dict[str, Way] = {
    FIRST: by_attention("mean"),
    "attention, maximum of the map": by_attention("maximum"),
    "occlusion": way(),
    "occlusion, at the noised picture": lambda pipe, trace, kept: explained(
        pipe, trace, ()
    ).values.tolist(),
    "occlusion, one pass at level 0.9": way(levels=0.9),
    "occlusion, padding": way(absent="padding"),
}
"""What is compared on every caption; the first is what the others are beside."""

MORE: dict[str, Way] = {
    "information": way(how="information"),
    "surrogate": way(how="surrogate"),
    "gradient": way(how="gradient"),
}
"""What takes many passes, compared on fewer captions."""

SHAPLEY: dict[str, Way] = {"shapley": way(how="shapley")}
"""What is exact for at most eight words."""


def drawn(pipe: Any, caption: str, seed: int) -> tuple[xattn.Trace, Kept, Scores]:
    """Draw a caption, and without each of its words.

    Returns:
        Its trace, its run's latents, and the mean squared change of the pixels without each word.
    """
    words = caption.split()
    less = [" ".join(words[:n] + words[n + 1 :]) for n in range(len(words))]
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    shape = (1, model.config.in_channels, 16, 16)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    samples, trace = Samples(askable(pipe)), xattn.Trace()
    recorder = instruments_of(Options.of(keep=(), words=None, layers=None), trace)
    with opened(PipelineOrigin(pipe), [*recorder, samples]):
        plain = pipe(caption, latents=noise.clone(), **options).images[0]
    rest = pipe(less, latents=noise.repeat(len(less), 1, 1, 1), **options).images
    full = np.asarray(plain, dtype=np.float64) / 255
    return (
        trace,
        samples.kept,
        [float(((np.asarray(each) / 255 - full) ** 2).mean()) for each in rest],
    )


def agreement(scores: Scores, truth: Scores) -> float:
    """Return the rank correlation over the words of a caption."""
    found = spearmanr(scores, truth).statistic
    return 0.0 if np.isnan(found) else float(found)


def measured(pipe: Any, seed: int, ways: dict[str, Way], curves: bool) -> dict[str, float]:
    """Return the figures of one caption: each way's agreement, and areas where they are wanted."""
    trace, kept, truth = drawn(pipe, scene(seed).caption, seed)
    found = {name: agreement(each(pipe, trace, kept), truth) for name, each in ways.items()}
    if curves:
        areas = explained(pipe, trace, kept, levels=FEW).faithfulness(orders=2).areas
        for name, (down, up) in areas.items():
            found |= {f"deletion, {name}": down, f"insertion, {name}": up}
    return found


def summed(captions: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return means and intervals over captions, and over the differences to attention."""
    tally, above, areas = Tally(), Tally(), Tally()
    for owner, figures in enumerate(captions.values()):
        for name, value in figures.items():
            if name.startswith(("deletion", "insertion")):
                areas.add(name, value, owner)
                continue
            tally.add(name, value, owner)
            above.add(name, value - figures[FIRST], owner)
    return {
        "correlation": tally.summary(),
        "above attention": above.summary(),
        "areas": areas.summary(),
    }


def pointing(pipe: Any, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Compare where maps of occlusion and of attention point, by class of word."""
    tally = Tally()
    for one in scenes:
        trace = xattn.probe(pipe, one.image, one.caption, seed=one.seed)
        why = xattn.attribute(pipe, trace, seed=one.seed)
        for word, kind, mask in words_of(one):
            if list(why.words).count(word) != 1 or f"{word} (2)" in why.words:
                continue
            for name, heat in (("occlusion", why.map(word)), ("attention", trace.heatmap(word))):
                hit = pointed(enlarged([np.asarray(heat)], mask.shape), mask[None])[0]
                tally.add(f"{kind}, {name}", float(hit), one.seed)
            tally.add(f"{kind}, chance", float(mask.mean()), one.seed)
    return {"scenes": len(scenes), "pointing": tally.summary()}


def timed(pipe: Any) -> dict[str, float]:
    """Time exact Shapley values of eight words, and plain sampling of 20 steps.

    In CPU seconds on one core, and Shapley values by the clock on two.
    """
    trace = xattn.probe(pipe, scene(POINT_SEED).image, EIGHT, levels=0.5)
    found = {}
    for name, call in (
        ("plain sampling", lambda: pipe(EIGHT, num_inference_steps=20, guidance_scale=GUIDANCE)),
        ("shapley", lambda: xattn.attribute(pipe, trace, how=Shapley())),
    ):
        before, clock = time.process_time(), time.perf_counter()
        call()
        found[name] = time.process_time() - before
        found[f"{name}, by the clock"] = time.perf_counter() - clock
    torch.set_num_threads(2)
    clock = time.perf_counter()
    xattn.attribute(pipe, trace, how=Shapley())
    found[TWO] = time.perf_counter() - clock
    torch.set_num_threads(1)
    return {**found, "ratio": found["shapley"] / found["plain sampling"]}


def tuned(pipe: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """Compare levels, and kinds of absence, on captions that are not reported."""
    single = [(level,) for level in (0.5, 0.7, 0.9)]
    several = [(0.9, 0.7), (0.9, 0.8, 0.7), (0.9, 0.8, 0.7, 0.6)]
    ways = {FIRST: by_attention("mean")}
    for levels in single + several:
        name = " and ".join(f"{level:g}" for level in levels)
        ways[f"removed, levels {name}"] = way(levels=levels)
    ways["padding, levels 0.9 and 0.7"] = way(levels=(0.9, 0.7), absent="padding")
    return summed({str(seed): measured(pipe, seed, ways, curves=False) for seed in seeds})


# -- the page


def stated(figure: dict[str, float]) -> str:
    """Format a mean with its interval."""
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def markdown(results: dict[str, Any]) -> str:
    """Format all models' figures as a page."""
    parts = [
        "# Why: what words do, and what scores say",
        "Made by `python -m benchmarks.why`. Rank correlation of each word's score with the change "
        "of the picture that is drawn again without the word, the mean over captions with its 95 % "
        "interval over captions; beside it the mean of the differences to attention.",
    ]
    everything = {
        f"{model} {seed}": figures
        for model, result in results.items()
        for seed, figures in result["captions"].items()
    }
    if len(results) > 1:
        parts += [f"## All models: {len(everything)} captions", *figure_lines(everything)]
    for model, result in results.items():
        count = len(result["captions"])
        parts += [f"## {model}: {count} captions", *figure_lines(result["captions"])]
        if "pointing" in result:
            parts += pointing_lines(result["pointing"])
        if "time" in result:
            timing = result["time"]
            parts.append(
                f"Exact Shapley values of 8 words: {timing['shapley']:.1f} s of one core, "
                f"{timing['ratio']:.1f} times plain sampling of 20 steps "
                f"({timing['plain sampling']:.1f} s)"
                + (f"; {two:.1f} s by the clock on two." if (two := timing.get(TWO)) else ".")
            )
        parts.append(f"*{machine.line(result['machine'])}*")
    return "\n\n".join(parts) + "\n"


def figure_lines(captions: dict[str, dict[str, float]]) -> list[str]:
    """Format correlations, and areas under curves."""
    found = summed(captions)
    rows = [
        (name, stated(figure), stated(found["above attention"][name]), str(figure["count"]))
        for name, figure in found["correlation"].items()
    ]
    lines = [table(("scores", "correlation", "above attention", "captions"), rows)]
    areas = [
        (name, stated(figure), str(figure["count"])) for name, figure in found["areas"].items()
    ]
    if areas:
        lines += [
            "Areas under curves of the estimate's change:",
            table(("", "area", "captions"), areas),
        ]
    return lines


def pointing_lines(found: dict[str, Any]) -> list[str]:
    """Format where maps point, a row for each class of words."""
    figures = found["pointing"]
    kinds = sorted({name.rpartition(", ")[0] for name in figures})
    columns = ("occlusion", "attention", "chance")
    rows = [(kind, *(stated(figures[f"{kind}, {name}"]) for name in columns)) for kind in kinds]
    return [
        f"Share of maps whose maximum lies in the word's exact mask, on {found['scenes']} drawn "
        "scenes:",
        table(("words", *columns), rows),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure models caption by caption, in turn, and write the page after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.why", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="with commas between")
    parser.add_argument("--count", default="40", help="captions; a number for each model, or one")
    parser.add_argument("--more", type=int, default=8, help="captions with the costly methods")
    parser.add_argument("--shapley", type=int, default=4, help="captions with Shapley values")
    parser.add_argument("--scenes", type=int, default=40, help="scenes for pointing, of unet")
    parser.add_argument("--tune", type=int, default=0, metavar="N", help="compare on N others")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipes = {name: toyland.demo(name, device="cpu") for name in options.models.split(",")}
    for name, pipe in pipes.items():
        pipe.set_progress_bar_config(disable=True)
        if options.tune:
            found = tuned(pipe, range(TUNE_SEED, TUNE_SEED + options.tune))
            print(name, json.dumps(found["correlation"], indent=1))
    if not options.tune:
        measure(pipes, options)


def measure(pipes: dict[str, Any], options: argparse.Namespace) -> None:
    """Measure what is not in the results yet; those of other weights are forgotten."""
    path = options.out / "why.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    counts = [int(each) for each in options.count.split(",")]
    wanted = dict(zip(pipes, counts * len(pipes), strict=False))

    def write() -> None:
        ordered = {name: results[name] for name in MODELS if name in results}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
        (options.out / "why.md").write_text(markdown(ordered), "utf-8")

    for name, pipe in pipes.items():
        weights = digest_of(pipe)
        if results.get(name, {}).get("weights") != weights:
            results[name] = {"captions": {}, "machine": machine.facts(), "weights": weights}
    for n in range(max(wanted.values())):
        for name, pipe in pipes.items():
            result = results[name]
            seed = COUNT_SEED + n
            if n >= wanted[name] or str(seed) in result["captions"]:
                continue
            eight = n < options.shapley and len(scene(seed).words) <= 8
            ways = {**WAYS, **(MORE if n < options.more else {}), **(SHAPLEY if eight else {})}
            result["captions"][str(seed)] = measured(pipe, seed, ways, n < options.more)
            write()
    if "unet" in pipes and options.scenes:
        scenes = [scene(POINT_SEED + n) for n in range(options.scenes)]
        results["unet"] |= {"pointing": pointing(pipes["unet"], scenes)}
        write()
    for name, pipe in pipes.items():
        results[name]["time"] = timed(pipe)
        write()


if __name__ == "__main__":
    main()
