"""The figures of steering as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.tally import percent

SUCCESS = "everything asked"


def markdown(folder: Path) -> str:
    """Write the figures of all models as a page."""
    lines = [
        "# Steering: figures", "",
        "Made by `python -m benchmarks.steering`. In brackets the 95 % bootstrap interval over "
        "captions, and how many were judged.",
    ]  # fmt: skip
    for path in sorted(folder.glob("steering-*.json")):
        result = json.loads(path.read_text())
        lines += ["", f"## `{path.stem.removeprefix('steering-')}`"]
        if "hard" in result:
            lines += _hard_lines("`Present` and `Bind`", result["hard"])
        if "noise" in result:
            tries = result["noise"]["tries"]
            about = f"the best of {tries} noises by `Present` and `Bind`, then drawn plainly"
            lines += _hard_lines(about, result["noise"])
        if "place" in result:
            lines += _place_lines(result["place"])
        if "beside" in result:
            lines += _beside_lines(result["beside"])
    return "\n".join(lines) + "\n"


def _hard_lines(about: str, result: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"Hard captions, {about}:",
        "",
        "| | plain | steered | drawn scenes through the autoencoder |",
        "|---|---|---|---|",
    ]
    for name, figure in result["plain"].items():
        others = (result["steered"], result.get("ceiling", {}))
        cells = [percent(each[name]) if name in each else "" for each in others]
        lines.append(f"| {name} | {percent(figure)} | {cells[0]} | {cells[1]} |")
    found = result["compared"]
    lines += ["", "| steered, beside plain | |", "|---|---|"]
    for name in ("difference", "mended", "mended, where the autoencoder can show it", "kept"):
        lines.append(f"| {name} | {percent(found[name]) if name in found else 'none'} |")
    for name in [name for name in ("cost in passes", "cost in time") if name in found]:
        each = found[name]
        lines.append(f"| {name} | {each['mean']:.2f} ({each['low']:.2f} to {each['high']:.2f}) |")
    for name, value in found["drift"].items():
        lines.append(f"| Fréchet distance, {name} | {value:.2f} |")
    return lines


def _place_lines(result: dict[str, Any]) -> list[str]:
    lines = ["", "`Place`, captions of one object on a side:", ""]
    lines += ["| | plain | steered |", "|---|---|---|"]
    for name, figure in result["plain"].items():
        lines.append(f"| {name} | {percent(figure)} | {percent(result['steered'][name])} |")
    return [*lines, f"| cost in time | 1 | {result['cost in time']:.2f} |"]


def _beside_lines(result: dict[str, Any]) -> list[str]:
    lines = ["", "Beside diffusers' Attend-and-Excite, the same captions and seeds:", ""]
    lines += ["| | " + " | ".join(result) + " |", "|---" * (len(result) + 1) + "|"]
    for name in (SUCCESS, "object", "object in its colour"):
        lines.append(f"| {name} | " + " | ".join(percent(r[name]) for r in result.values()) + " |")
    costs = " | ".join(f"{each['cost in time']:.2f}" for each in result.values())
    return [*lines, f"| cost in time | {costs} |"]
