"""The difference of a word's maps in two runs: signed, on one diverging scale."""

from __future__ import annotations

import numpy as np

from xattn.results.heatmap import HeatMap
from xattn.results.signed import SignedMap


class Difference(SignedMap):
    """What a word's attention gained in one run over another: float32 (height, width), signed.

    The mean attention per step, a probability, of the one less that of the other: above 0, red,
    where the first run has more. ``mean`` is how much more attention the word has overall.
    """


def difference(mine: HeatMap, other: HeatMap, steps: tuple[int, int]) -> Difference:
    """Return the difference of two heat maps, each divided by its number of steps.

    The other map is brought to the first one's grid.
    """
    mine_each = mine.array.astype(np.float64) / steps[0]
    other_each = other.resize(mine.shape).array.astype(np.float64) / steps[1]
    return Difference((mine_each - other_each).astype(np.float32), mine.word, mine.picture)
