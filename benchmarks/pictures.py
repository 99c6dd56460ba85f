"""The results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.grounding import EVERY


def _bars(
    names: list[str], series: dict[str, list[tuple[float, float, float]]], path: Path
) -> None:
    """Draw (middle, low, high) of each name, a panel per series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(series) + 3, 0.3 * len(names) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for panel, (title, values) in zip(panels, series.items(), strict=True):
        middle = [v[0] for v in values]
        spread = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
        panel.errorbar(middle, range(len(names)), xerr=spread, fmt="o", color="#30508c", capsize=3)
        panel.set_title(title, loc="left")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def draw_grounding(grounding: dict[str, Any], folder: Path) -> None:
    """Draw pointing and IoU of every way of each model, with their intervals."""
    for model, found in grounding.items():
        ways = {name: figures[EVERY] for name, figures in found["ways"].items()}
        series = {
            title: [(w[key]["mean"], w[key]["low"], w[key]["high"]) for w in ways.values()]
            for title, key in (("pointing", "pointing"), ("IoU", "iou"))
        }
        _bars(list(ways), series, folder / f"grounding-{model}.png")


def draw_speed(speed: dict[str, Any], path: Path) -> None:
    """Draw the CPU time of recordings and edits relative to plain, with quartiles."""
    names, values = [], []
    for model, found in speed.items():
        for part in ("recording", "editing"):
            for name, each in found.get(part, {}).get("ratios", {}).items():
                names.append(f"{model}: {name}")
                values.append((each["cpu"]["median"], each["cpu"]["low"], each["cpu"]["high"]))
    _bars(names, {"CPU time, plain = 1": values}, path)
