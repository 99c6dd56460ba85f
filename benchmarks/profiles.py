"""Time spent in recording and editing, operation by operation, on the bundled model.

`python -m benchmarks.profiles` writes `profiles.md` to `benchmarks/results`: for each way of
recording and editing, the extra time and number of calls of torch's operators over the plain call,
on one thread. The remaining time is Python's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks import machine, models
from benchmarks.page import table
from benchmarks.speed import EDITS, OTHER, PROMPT, RECORDINGS, Drawing
from benchmarks.tally import RESULTS
from benchmarks.timing import Call, one_thread

SHOWN = 8  # operators of each kind
SKIPPED = ("addmm", "convolution", "conv2d", "native_group_norm", "aten::mm", "native_layer_norm")
"""The model's heavy operators: the same calls in both, so their difference is noise."""


def operators(call: Call) -> dict[str, tuple[float, int]]:
    """Return each operator's own milliseconds, and its number of calls."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    return {e.key: (e.self_cpu_time_total / 1000, e.count) for e in found.key_averages()}


def more(plain: Call, other: Call) -> list[tuple[str, float, int]]:
    """Return the operators' extra cost over a plain call, largest first."""
    before, after = operators(plain), operators(other)
    rows = []
    for name in before.keys() | after.keys():
        (old, fewer), (new, many) = before.get(name, (0.0, 0)), after.get(name, (0.0, 0))
        if many != fewer and not any(part in name for part in SKIPPED):
            rows.append((name, new - old, many - fewer))
    return sorted(rows, key=lambda row: -row[1])


def measure(steps: int) -> list[tuple[str, float, list[tuple[str, float, int]]]]:
    """Return for each way its name, the plain call's milliseconds, and its operators."""
    draw = Drawing(models.bundled(), 128, steps)
    single, double = draw.plain(), draw.plain([PROMPT, OTHER])
    replace = [EDITS["replace"]]
    ways: dict[str, tuple[Call, Call]] = {
        "recording: each step and layer": (
            single,
            draw.recorded(RECORDINGS["each step and layer"]),
        ),
        "recording: to disk": (single, draw.recorded(RECORDINGS["to disk"])),
        "editing: replace": (double, draw.edited(replace)),
        "editing: refine": (double, draw.edited([EDITS["refine"]])),
        "editing: replace, LocalBlend": (double, draw.edited([EDITS["replace, LocalBlend"]])),
        "editing: replace, with a trace": (double, draw.edited(replace, trace=True)),
    }
    found = []
    for name, (plain, other) in ways.items():
        plain(), other()  # warm
        whole = sum(ms for ms, _ in operators(plain).values())
        found.append((name, whole, more(plain, other)))
    return found


def markdown(found: Sequence[Any], steps: int, facts: dict[str, Any]) -> str:
    """Format the operators as a page."""
    parts = [
        "# Where the time goes",
        f"Made by `python -m benchmarks.profiles`: bundled model, {steps} steps, one thread, what "
        "torch's operators take more than in the plain call (for edits, a plain batch of two).",
    ]
    for name, whole, rows in found:
        total = sum(ms for _, ms, _ in rows)
        cells = [
            (f"`{operator.removeprefix('aten::')}`", f"{ms:.1f}", f"{calls:+d}")
            for operator, ms, calls in rows[:SHOWN]
        ]
        parts += [
            f"## {name}",
            f"{total:.0f} ms more than the plain call's {whole:.0f}: {100 * total / whole:.1f} %.",
            table(("operator", "ms more", "calls"), cells),
        ]
    return "\n\n".join([*parts, f"*{machine.line(facts)}*"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with one_thread():
        text = markdown(measure(options.steps), options.steps, machine.facts())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "profiles.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
