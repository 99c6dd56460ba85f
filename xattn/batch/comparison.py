"""What changed between two batches, word by word, with intervals over their items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xattn.batch.layout import Row
from xattn.maps.measures import NUMBERS

if TYPE_CHECKING:
    from xattn.batch.index import Runs

MEASURES = ("mean", "focus", "entropy")
_PER_STEP = ("mean", "maximum", "std")  # of maps that are sums over the steps
_DRAWS = 2000

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Change:
    """How much a measure of a word's map changed.

    Attributes:
        mean: over the images, of this batch less the other.
        low: lower end of its 95 % bootstrap interval; None with a single image.
        high: upper end.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.3g}"
        return f"{self.mean:+.3g} ({self.low:+.3g} to {self.high:+.3g}){'*' * self.sure}"


@dataclass(frozen=True)
class BatchComparison:
    """The words of two batches, compared over the images that both have.

    Attributes:
        changes: by word and measure, the words with the most images first.
        counts: for each word the number of images.
        unpaired: how many images with words only one of the batches has.
    """

    changes: Mapping[str, Mapping[str, Change]]
    counts: Mapping[str, int]
    unpaired: int

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Change]]]:
        return iter(self.changes.items())

    def __getitem__(self, word: str) -> Mapping[str, Change]:
        return self.changes[word]

    def __str__(self) -> str:
        measures = list(next(iter(self.changes.values())))
        rows = [["word", "images", *measures]]
        for word, found in self.changes.items():
            rows.append([word, str(self.counts[word]), *map(str, found.values())])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> list[dict[str, Any]]:
        """Return a plain row for each word and measure."""
        return [
            {"word": word, "images": self.counts[word], "measure": name,
             "mean": change.mean, "low": change.low, "high": change.high}
            for word, found in self.changes.items()
            for name, change in found.items()
        ]  # fmt: skip


def compare(mine: Runs, other: Runs, measures: Sequence[str]) -> BatchComparison:
    """Return what the words of two batches changed; see ``Runs.compare``.

    Raises:
        ValueError: a measure is unknown, or the batches have no word of an image in common.
    """
    unknown = [name for name in measures if name not in NUMBERS]
    if unknown or not measures:
        raise ValueError(
            f"measures={list(measures)!r}: each is one of {', '.join(NUMBERS)}, all of them numbers"
        )
    first, second = _rows(mine), _rows(other)
    both = [key for key in first if key in second]
    if not both:
        raise ValueError(
            f"{mine!r} and {other!r} have no word of an item in common: items are paired by their "
            "names, which are line numbers where none were given"
        )
    steps = _steps(mine, both), _steps(other, both)
    gained: dict[str, list[list[float]]] = defaultdict(list)
    for key in both:
        values = [
            [_value(rows[key], name, count[key[0]]) for name in measures]
            for rows, count in zip((first, second), steps, strict=True)
        ]
        gained[key[2]].append([a - b for a, b in zip(*values, strict=True)])
    order = sorted(gained, key=lambda word: -len(gained[word]))
    pictures = {key[:2] for key in first} ^ {key[:2] for key in second}
    return BatchComparison(
        {word: _changes(np.array(gained[word]), measures) for word in order},
        {word: len(gained[word]) for word in order},
        len(pictures),
    )


def _rows(runs: Runs) -> dict[Key, Row]:
    """Return the index' rows by item, image and word."""
    return {
        (str(row["name"]), int(row["row"]), str(row["word"])): row
        for row in runs.rows
        if row["word"] is not None
    }


def _steps(runs: Runs, keys: Sequence[Key]) -> dict[str, int]:
    """Return the number of steps of each item, by its name."""
    wanted = {key[0] for key in keys}
    found: dict[str, int] = {}
    for each in runs:
        if each.name in wanted:
            found[each.name] = each.recording.done
    return found


def _value(row: Row, name: str, steps: int) -> float:
    value = float(row[name])
    return value / steps if name in _PER_STEP else value


def _changes(gained: np.ndarray[Any, Any], measures: Sequence[str]) -> dict[str, Change]:
    """Return the mean of each measure's changes, (images, measures), with its interval."""
    means = gained.mean(0)
    if len(gained) < 2:
        return {n: Change(float(m), None, None) for n, m in zip(measures, means, strict=True)}
    picks = np.random.default_rng(0).integers(len(gained), size=(_DRAWS, len(gained)))
    low, high = np.quantile(gained[picks].mean(1), [0.025, 0.975], axis=0)
    return {
        name: Change(float(means[n]), float(low[n]), float(high[n]))
        for n, name in enumerate(measures)
    }
