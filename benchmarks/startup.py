"""How long a new process waits: `python -m benchmarks.startup` writes `startup.md` and `.json`.

Each command runs in a process of its own, many times, in turn with an empty Python: what is told
is the median of all runs and their quartiles, and the CPU time beside the clock's, since other
work on the machine lengthens the clock's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.page import table
from benchmarks.tally import RESULTS

COMMANDS = {
    "an empty Python": ["-c", ""],
    "import xattn": ["-c", "import xattn"],
    "xattn --help": ["-m", "xattn.cli", "--help"],
    "import xattn; xattn.record": ["-c", "import xattn; xattn.record"],
    "import diffusers' StableDiffusionPipeline": [
        "-c", "from diffusers import StableDiffusionPipeline",
    ],
}  # fmt: skip
GOALS = {"import xattn": "0.3 s", "xattn --help": "1 s"}


def seconds(command: Sequence[str]) -> tuple[float, float]:
    """Run Python once; return the clock's seconds and the process's CPU seconds."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    children = (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
    return wall, children


def measure(runs: int) -> dict[str, Any]:
    """Time each command, in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)  # the first reads from the disk
    for _ in range(runs):
        for name, command in COMMANDS.items():
            found[name].append(seconds(command))
    figures = {}
    for name, each in found.items():
        low, median, high = np.quantile(each, (0.25, 0.5, 0.75), axis=0).tolist()
        figures[name] = {"low": low, "median": median, "high": high}
    return figures


def markdown(result: dict[str, Any]) -> str:
    """Format the figures as a page."""
    rows = []
    for name, figure in result["figures"].items():
        cells = [
            f"{figure['median'][i]:.2f} s ({figure['low'][i]:.2f} to {figure['high'][i]:.2f})"
            for i in (0, 1)
        ]
        rows.append((f"`{name}`", *cells, GOALS.get(name, "")))
    head = ("", "by the clock", "CPU time", "goal")
    told = (
        f"Made by `python -m benchmarks.startup`: {result['runs']} runs of each, in turn; medians "
        "with quartiles."
    )
    parts = ["# How long a new process waits", told, table(head, rows)]
    return "\n\n".join([*parts, f"*{machine.line(result['machine'])}*"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"runs": options.runs, "machine": machine.facts(), "figures": measure(options.runs)}
    (options.out / "startup.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (options.out / "startup.md").write_text(markdown(result), "utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
