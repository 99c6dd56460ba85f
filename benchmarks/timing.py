"""Timing of calls against each other, in turn, on one thread.

On shared machines the same call varies by tens of per cent from one minute to the next. So every
figure is a ratio of two consecutive calls, whose order changes from pair to pair; process CPU time
is measured beside wall time; the report is the median of the pairs with their quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """The median of several ratios, their quartiles, and their number."""

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, ratios: list[float]) -> Ratio:
        """Summarize ratios."""
        low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high), len(ratios))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def timed(call: Call) -> tuple[float, float]:
    """Return the wall seconds and the process's CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(plain: Call, others: dict[str, Call], pairs: int) -> dict[str, Any]:
    """Time several calls against a plain one, in interleaved pairs on one thread.

    Returns:
        ``plain``'s median seconds, and by name the ratios of wall and of CPU time.
    """
    seconds: list[tuple[float, float]] = []
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    with one_thread():
        for call in (plain, *others.values()):
            call()
        for turn in range(pairs):
            for name, other in others.items():
                if turn % 2:
                    mine, base = timed(other), timed(plain)
                else:
                    base, mine = timed(plain), timed(other)
                seconds.append(base)
                ratios[name].append((mine[0] / base[0], mine[1] / base[1]))
    wall, cpu = np.median(seconds, axis=0)
    found = {
        name: {
            "wall": asdict(Ratio.of([wall for wall, _ in each])),
            "cpu": asdict(Ratio.of([cpu for _, cpu in each])),
        }
        for name, each in ratios.items()
    }
    return {"plain": {"wall": float(wall), "cpu": float(cpu)}, "ratios": found}
