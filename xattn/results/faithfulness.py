"""Faithfulness: does taking words away in a ranking's order change the image most?

Deletion takes words from the whole prompt, the highest ranked first; insertion gives them to an
empty one (Petsiuk et al. 2018, for words in place of pixels). Both curves are the share of the
target's whole loss; each area is between 0 and 1, and a better order has the larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.views import charts, sheets

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Deletion and insertion curves of several orders of the words.

    Attributes:
        deletion: for each order by name, the share of the loss after 0, 1, ... all words are
            gone: from 0 to 1.
        insertion: the share of the loss made up for after 0, 1, ... all words are back.
    """

    deletion: dict[str, Array]
    insertion: dict[str, Array]

    @property
    def areas(self) -> dict[str, tuple[float, float]]:
        """The areas under deletion and insertion of each order; larger is better."""
        return {
            name: (area(self.deletion[name]), area(self.insertion[name])) for name in self.deletion
        }

    def table(self) -> str:
        """Return the areas as text."""
        wide = max(len(name) for name in self.areas)
        lines = [f"{'order':{wide}}  deletion  insertion"]
        for name, (down, up) in self.areas.items():
            lines.append(f"{name:{wide}}  {down:8.3f}  {up:9.3f}")
        return "\n".join(lines)

    def plot(self, width: int = 640) -> Image.Image:
        """Draw the deletion curves."""
        return charts.curves(
            self.deletion, title="share of the loss, words taken away", width=width
        )

    def __str__(self) -> str:
        return self.table()

    def _repr_png_(self) -> bytes:
        return sheets.png(self.plot())


def area(curve: Array) -> float:
    """Return the area under a curve over [0, 1], by the trapezoidal rule."""
    return float(((curve[1:] + curve[:-1]) / 2).mean())


def faithfulness(
    values: Callable[[NDArray[np.bool_]], Array],
    rankings: Mapping[str, Array],
    *,
    seed: int = 0,
    orders: int = 8,
) -> Faithfulness:
    """Return the curves of some rankings, and the mean curve of random ones.

    Args:
        values: from subsets of the words, bool (rows, words), to the target of each.
        rankings: numbers of each word; the largest goes first.
        seed: of the random orders.
        orders: how many of them; 0 leaves them out.
    """
    count = len(next(iter(rankings.values())))
    random = np.random.default_rng(seed)
    given = {name: [np.argsort(-ranks, kind="stable")] for name, ranks in rankings.items()}
    if orders:
        given["random"] = [random.permutation(count) for _ in range(orders)]
    deletion, insertion = {}, {}
    for name, several in given.items():
        down = [_curve(values, order, gone=True) for order in several]
        up = [_curve(values, order, gone=False) for order in several]
        deletion[name], insertion[name] = np.mean(down, axis=0), np.mean(up, axis=0)
    return Faithfulness(deletion, insertion)


def _curve(
    values: Callable[[NDArray[np.bool_]], Array], order: NDArray[np.int64], gone: bool
) -> Array:
    """Return the curve of one order, from 0 to 1; 0 everywhere where nothing is lost."""
    place = np.argsort(order)
    touched = place[None, :] < np.arange(len(order) + 1)[:, None]  # (words + 1, words)
    found = values(~touched if gone else touched)
    whole = found[-1] - found[0]
    return (found - found[0]) / whole if whole else np.zeros_like(found)
