"""Whether a word's map is more than chance: one number, and what it would be without grounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.views import charts, sheets

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sanity:
    """How alike a word's map is to others: rank correlations over the cells, from -1 to 1.

    Attributes:
        word: the word.
        again: with its own maps under other noise.
        absent: with those of words that aren't in the picture, in its place.
        place: with those of the words that come to its place in shuffled prompts.
        moved: with its own maps where the prompt is shuffled and it stands elsewhere.
        weights: with its own maps where a share of the weights is shuffled, from the end.
    """

    word: str
    again: Array
    absent: Array
    place: Array
    moved: Array
    weights: dict[float, float]

    @property
    def number(self) -> float:
        """How well the map comes out again: the mean over noises."""
        return float(self.again.mean())

    @property
    def null(self) -> Array:
        """What the number would be for a map of the place, or of a habit: absent and place."""
        return np.concatenate([self.absent, self.place])

    @property
    def p(self) -> float:
        """The chance that a map of the null distribution, or the word's own, reaches the number.

        With n maps at least 1 / (n + 1). Small means grounded.
        """
        return float((1 + (self.null >= self.number).sum()) / (1 + len(self.null)))

    def table(self) -> str:
        """Return each comparison as text, its mean, least and most."""
        rows = {
            "the word again, other noise": self.again,
            "the word, elsewhere in the prompt": self.moved,
            "absent words in its place": self.absent,
            "other words at its place": self.place,
        }
        lines = [f"{'map of ' + repr(self.word) + ' against':36}  mean  least   most"]
        for name, row in rows.items():
            lines.append(f"{name:36} {row.mean():5.2f}  {row.min():5.2f}  {row.max():5.2f}")
        for share, value in self.weights.items():
            lines.append(f"{f'{share:.0%} of the weights shuffled':36} {value:5.2f}")
        return "\n".join(lines)

    def plot(self, width: int = 640) -> Image.Image:
        """Draw a bar for each comparison, with its range."""
        rows = {
            "again": self.again, "moved": self.moved, "absent": self.absent, "place": self.place,
            **{f"{share:.0%} shuffled": np.array([each]) for share, each in self.weights.items()},
        }  # fmt: skip
        means = np.array([row.mean() for row in rows.values()])
        ranges = np.array([(row.min(), row.max()) for row in rows.values()])
        title = f"how alike the map of {self.word!r} is to others"
        return charts.bars(list(rows), means, ranges, title=title, width=width)

    def __str__(self) -> str:
        alike = int((self.null >= self.number).sum())
        return (
            f"{self.word!r}: its map comes out again at {self.number:.2f}, a map of its place at "
            f"{self.null.mean():.2f}; {alike} of {len(self.null)} such maps are as alike "
            f"(p = {self.p:.2f})"
        )

    def _repr_png_(self) -> bytes:
        return sheets.png(self.plot())
