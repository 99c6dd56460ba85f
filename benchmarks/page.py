"""The results as tables, one page of all of them; ``benchmarks.documentation`` shows some."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import line
from benchmarks.tally import RESULTS

PARTS = ("speed", "memory", "truth", "batch", "edits", "schedules", "forms", "peers")

Result = dict[str, Any]


def read(folder: Path = RESULTS) -> dict[str, Result]:
    """Read the measured parts."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(f.read_text("utf-8")) for part, f in files.items() if f.exists()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def ratio(figure: dict[str, float]) -> str:
    """Format a ratio with its quartiles."""
    return f"{figure['median']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def percent(figure: dict[str, float]) -> str:
    """Format a share with its interval."""
    return f"{100 * figure['mean']:.1f} % ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


EDIT_GOALS = {
    "recolour, held: new colour": ">= 90 %",
    "recolour, blended: new colour": ">= 90 %",
    "recolour, held: silhouette IoU": ">= 0.85",
    "recolour, blended: background PSNR": ">= 30 dB",
    "recolour, held: background PSNR above new prompt": ">= 6 dB",
    "swap, blended: new object": ">= 80 %",
    "swap, blended: ground PSNR": ">= 28 dB",
    "sweep: colour strength rises": ">= 90 %",
    "sweep: saturation rises": ">= 90 %",
}


def edit_figure(name: str, figure: dict[str, float]) -> str:
    """Format a figure of the edits: a share, a ratio in dB, or a number."""
    if "PSNR" in name or "strength at" in name or "IoU" in name:
        unit = " dB" if "PSNR" in name else ""
        digits = 1 if unit else 2
        low, high = figure["low"], figure["high"]
        return f"{figure['mean']:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"
    return percent(figure)


def size(nbytes: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def _costs(found: Result) -> list[list[str]]:
    return [
        [name, ratio(each["cpu"]), ratio(each["wall"]), str(each["cpu"]["pairs"])]
        for name, each in found["ratios"].items()
    ]


_COST = ("", "CPU time, plain = 1", "wall time, plain = 1", "pairs")


def speed_page(result: Result) -> str:
    """Format the cost of recording and editing."""
    parts = [
        "## Time",
        "One thread; a pair is a plain call and the other one, next to each other. Median of the "
        "pairs, their quartiles in brackets.",
    ]
    for model, found in result["result"].items():
        for part, head in (("recording", "plain"), ("editing", "a plain batch of two")):
            if part not in found:
                continue
            seconds = found[part]["plain"]["wall"]
            parts += [f"### {part.title()}: {model}", f"Against {head}, {seconds:.2f} s."]
            parts.append(table(_COST, _costs(found[part])))
        if "growth" in found:
            rows = [
                [f"{count} {what}", *_costs(each)[0][1:], _bytes(each)]
                for what, ladder in found["growth"].items()
                for count, each in ladder.items()
            ]
            parts += [f"### How it grows: {model}", "Each step and layer recorded."]
            parts.append(table((*_COST, "kept"), rows))
    return "\n\n".join(parts)


def _bytes(found: Result) -> str:
    if "kept" not in found:
        return ""
    return f"{size(found['kept'])} ({found['kept'] / found['implied']:.3f} of what is implied)"


def memory_page(result: Result) -> str:
    """Format the memory kept by recordings."""
    rows = [
        [name, size(each["kept"]), size(each["implied"]), f"{each['kept'] / each['implied']:.3f}"]
        for name, each in result["result"].items()
    ]
    head = ("bundled model, 20 steps", "kept", "what the options imply", "kept / implied")
    return "## Bytes\n\n" + table(head, rows)


def truth_page(result: Result) -> str:
    """Format the truth of heat maps, model by model."""
    every = result["result"]["grounding"]
    first = next(iter(every.values()))
    parts = [
        "## Truth",
        f"{first['scenes']} drawn scenes that training never saw, at noise levels "
        f"{', '.join(map(str, first['levels']))}, against exact masks. "
        "Pointing: the maximum lies in the mask. IoU: at the threshold that was best, for the "
        "class of words, on other scenes. In brackets 95 % bootstrap intervals over scenes; a "
        f"mask covers {100 * first['chance']:.0f} % of the picture on average.",
        "### By model and class of words",
        "The default heat map: pointing / IoU, with its floor (random weights) and ceiling (exact "
        "masks on the latent grid).",
        _by_model(every),
    ]
    for model, grounding in every.items():
        parts += _model_parts(model, grounding)
    if "precision" in result["result"]:
        parts += [
            "### Half precision against float32",
            "Maps of the same scenes at noise level 500: the largest difference of a probability, "
            "and the median over maps of the largest difference as a share of the map's maximum.",
            _precision(result["result"]["precision"]),
        ]
    return "\n\n".join(parts)


def _pair(figures: Result) -> str:
    return f"{100 * figures['pointing']['mean']:.0f} % / {100 * figures['iou']['mean']:.0f} %"


FLOOR, CEILING = "random weights (floor)", "exact mask (ceiling)"


def _by_model(every: dict[str, Result]) -> str:
    kinds = list(next(iter(every.values()))["ways"]["default"])
    columns = [
        (f"{model}, {name}", grounding["ways"][way])
        for model, grounding in every.items()
        for name, way in (("default", "default"), ("floor", FLOOR), ("ceiling", CEILING))
    ]
    rows = [[kind, *(_pair(figures[kind]) for _, figures in columns)] for kind in kinds]
    return table(("", *(name for name, _ in columns)), rows)


def _model_parts(model: str, grounding: Result) -> list[str]:
    kinds = list(grounding["ways"]["default"])
    chosen = {
        what: grounding[what] for what in ("chosen layers", "chosen heads") if grounding.get(what)
    }
    return [
        f"### {model}: ways to make a map",
        f"{grounding['words']} words.",
        table(
            ("heat map", "pointing", "IoU", "pointing above default", "IoU above default"),
            [
                [name, *(percent(figures["all words"][w]) for w in FIGURES)]
                for name, figures in grounding["ways"].items()
            ],
        ),
        *(
            f"{what.capitalize()}: {', '.join(f'`{n}`' for n in names)}."
            for what, names in chosen.items()
        ),
        _verdict(grounding),
        "By class of words, pointing / IoU:",
        table(
            ("heat map", *kinds),
            [
                [name, *(_pair(figures[kind]) for kind in kinds)]
                for name, figures in grounding["ways"].items()
            ],
        ),
    ]


FIGURES = ("pointing", "iou", "pointing above default", "iou above default")


def _verdict(grounding: Result) -> str:
    above = "above the default in one figure and below it in none, outside of the noise"
    if not grounding["better"]:
        return f"None of these is {above}."
    return f"{above.capitalize()}: {', '.join(grounding['better'])}."


def _precision(found: Result) -> str:
    rows = []
    for dtype, layers in found.items():
        if "failed" in layers:
            rows.append([dtype, layers["failed"], "", ""])
            continue
        rows += [
            [dtype, f"`{name}`", f"{each['largest difference']:.1e}", f"{each['of the peak']:.1e}"]
            for name, each in layers.items()
        ]
    return table(("", "layer", "largest difference", "of the map's maximum"), rows)


def peers_page(result: Result) -> str:
    """Format the cost of other libraries, each against its own plain pipeline."""
    rows = []
    for model, peers in result["result"].items():
        for name, each in peers.items():
            if "absent" in each:
                rows.append([name, model, f"absent: {each['absent']}", "", "", ""])
                continue
            cost, versions = each["ratios"]["peer"], each["versions"]
            used = f"{versions[name]} (diffusers {versions['diffusers']})"
            change = f"{each['largest change']:.1e}"
            rows.append([name, model, used, ratio(cost["cpu"]), ratio(cost["wall"]), change])
    head = ("", "model", "version", *_COST[1:3], "change of the latents")
    return "## Other libraries\n\n" + table(head, rows)


def batch_page(result: Result) -> str:
    """Format the cost of a batch of prompts."""
    found = result["result"]
    pairs = found["time"]["ratios"]["batch"]["cpu"]["pairs"]
    shares = found["throughput_ratio"]
    rows = [
        ("items per second, plain batched sampling = 1, by CPU time", f"{shares['cpu']:.3f}"),
        ("the same by wall time", f"{shares['wall']:.3f}"),
        *(
            (f"highest resident memory, {items} items", size(nbytes))
            for items, nbytes in found["peak_bytes"].items()
        ),
        ("growth for each item", size(max(0.0, found["growth_bytes_per_item"]))),
    ]
    return (
        f"## Batches\n\n`xattn batch`, {found['items']} items, {found['batch_size']} at a time, "
        f"{found['steps']} steps, recorded and written to files; {pairs} pairs.\n\n"
        + table(("", ""), rows)
    )


def _elsewhere(name: str, what: str) -> Callable[[Result], str]:
    return lambda result: f"## {what}\n\n[All figures]({name}.md)."


_PAGES = {
    "speed": speed_page,
    "memory": memory_page,
    "truth": truth_page,
    "batch": batch_page,
    "edits": _elsewhere("edits", "Edits: what changes, and what stays"),
    "schedules": _elsewhere("schedules", "Schedules: what is kept against what is done"),
    "forms": _elsewhere("attention-forms", "Two forms of an edited attention call"),
    "peers": peers_page,
}


def page(results: dict[str, Result]) -> str:
    """Format every part, with the machine it was measured on."""
    parts = ["# What xattn costs, and whether it is true", "Made by `python -m benchmarks`."]
    for part, result in results.items():
        quick = " `--quick`." if result["quick"] else ""
        note = f" {result['note']}" if "note" in result else ""
        parts += [_PAGES[part](result), f"*{line(result['machine'])}*{quick}{note}"]
    return "\n\n".join(parts) + "\n"
