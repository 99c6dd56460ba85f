"""The documentation's tables of the results, between two marks of a page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.machine import line
from benchmarks.page import (
    CEILING,
    EDIT_GOALS,
    FIGURES,
    FLOOR,
    Result,
    edit_figure,
    percent,
    ratio,
    size,
    table,
)

DOCS = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

_HEADLINES = (
    "each step and layer",
    "textbook recorder",
    "replace",
    "replace, LocalBlend",
    "replace, with a trace (the default)",
    "textbook prompt-to-prompt",
    "the plain call itself",
)
_SHOWN = ("default", "all layers", "prompt-to-prompt's average at 16 x 16", FLOOR, CEILING)


def summary(results: dict[str, Result]) -> str:
    """Return the documentation's tables; what wasn't measured is left out."""
    parts = []
    if "speed" in results:
        rows = []
        for model, found in results["speed"]["result"].items():
            for part in ("recording", "editing"):
                for name, each in found.get(part, {}).get("ratios", {}).items():
                    if name in _HEADLINES:
                        rows.append([model, f"{part}: {name}", ratio(each["cpu"])])
        rows += _peer_rows(results.get("peers"))
        note = f" {results['speed']['note']}" if "note" in results["speed"] else ""
        parts += [
            "Time on one thread, the plain pipeline (for edits: a plain batch of the same size) "
            "being 1; median of interleaved pairs, with quartiles. The plain call against itself "
            "shows what is the machine's own noise." + note,
            table(("model", "", "CPU time"), rows),
        ]
    if "memory" in results:
        found = results["memory"]["result"]
        rows = [[name, size(each["kept"])] for name, each in found.items()]
        parts += ["Memory kept, bundled model, 20 steps:", table(("", "kept"), rows)]
    if "truth" in results:
        every = results["truth"]["result"]["grounding"]
        rows = [
            [model, name, *(percent(figures["all words"][w]) for w in FIGURES[:2])]
            for model, grounding in every.items()
            for name, figures in grounding["ways"].items()
            if name in _SHOWN or name in grounding["better"]
        ]
        first = next(iter(every.values()))
        parts += [
            f"Truth: {first['words']} words of {first['scenes']} scenes that training never saw, "
            "against their exact masks (95 % bootstrap intervals). They are small models'; the "
            "text encoder of `unet` doesn't mix tokens, that of `contextual` does, and in `mmdit` "
            "text and image attend to each other in every block.",
            table(("model", "heat map", "pointing", "IoU"), rows),
        ]
    if "edits" in results:
        found = results["edits"]["result"]
        rows = [
            [name, edit_figure(name, found["figures"][name]), goal]
            for name, goal in EDIT_GOALS.items()
        ]
        parts += [
            f"Edits of {found['prompts']} prompts of the bundled model, each with a seed of its "
            "own, with the defaults (95 % bootstrap intervals):",
            table(("edit", "figure", "goal"), rows),
        ]
    if "batch" in results:
        share = results["batch"]["result"]["throughput_ratio"]["cpu"]
        parts.append(
            f"Batches (`xattn batch`), recorded and written to files: {share:.2f} of the items per "
            "second of plain batched sampling."
        )
    if results:
        first = next(iter(results.values()))
        parts.append(
            f"*{line(first['machine'])}* All figures: `benchmarks/results/benchmarks.md`; made by "
            "`python -m benchmarks`, put here by `python -m benchmarks --docs`."
        )
    return "\n\n".join(parts)


def _peer_rows(result: Result | None) -> list[list[str]]:
    rows = []
    for model, peers in (result or {"result": {}})["result"].items():
        for name, each in peers.items():
            shown = f"absent: {each['absent']}" if "absent" in each else None
            rows.append([model, name, shown or ratio(each["ratios"]["peer"]["cpu"])])
    return rows


def with_tables(text: str, tables: str) -> str:
    """Return a page with tables between its markers.

    Raises:
        ValueError: the page lacks the markers.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCS.name} has no {BEGIN} and {END} to write between")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"
