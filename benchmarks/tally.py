"""Scores with their bootstrap intervals, and where results are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


def interval(values: Sequence[float], owners: Sequence[int]) -> dict[str, float]:
    """Return the mean with its 95 % bootstrap interval; values of one owner are drawn together."""
    groups: dict[int, list[float]] = defaultdict(list)
    for value, owner in zip(values, owners, strict=True):
        groups[owner].append(float(value))
    if not groups:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "count": 0}
    sums = np.array([sum(group) for group in groups.values()])
    counts = np.array([len(group) for group in groups.values()])
    picks = np.random.default_rng(0).integers(len(sums), size=(1000, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(sums.sum() / counts.sum()),
        "low": float(low),
        "high": float(high),
        "count": len(values),
    }


class Tally:
    """Scores by name, each with the scene it comes from."""

    def __init__(self) -> None:
        self.scores: dict[str, tuple[list[float], list[int]]] = defaultdict(lambda: ([], []))

    def add(self, name: str, value: float, owner: int) -> None:
        """Add a score of the scene `owner`."""
        values, owners = self.scores[name]
        values.append(float(value))
        owners.append(owner)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return each name's mean and interval."""
        return {name: interval(*scores) for name, scores in sorted(self.scores.items())}


def percent(figure: dict[str, float]) -> str:
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['mean']:.1f} % ({low:.1f} to {high:.1f}; {figure['count']})"
