"""What each word causes: scores, maps, a chart, and whether taking words away bears them out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.results.faithfulness import Faithfulness, faithfulness
from xattn.results.heatmap import HeatMap
from xattn.views import charts, sheets

Values = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""A function from subsets of the words, bool (rows, words), to the target of each."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much of a target each word causes.

    Attributes:
        words: the words or phrases, in the order of the prompt; a second "a" is "a (2)".
        values: the score of each, (words,), in the target's unit.
        maps: where each score comes from, (words, height, width); None where a method can't say.
        intervals: the 95 % interval of each score, (words, 2), of methods that sample.
        attention: the mean of each word's attention map, beside the scores.
        prompt: the text.
        how: the method.
        target: what is explained, in words.
        absent: what it means that a word is absent.
        calls: denoiser rows that were asked.
        levels: shares of the noise schedule at which it was asked.
        facts: what else the method found, plain values.
        picture: the picture that is explained, where it is known.
        positions: of each word, on the token axis; empty where they aren't words.
        trace: the recording of the picture's attention, where there is one.
        image: index of the picture in it.
        ask: what ``faithfulness`` asks; None for an attribution from elsewhere.
    """

    words: tuple[str, ...]
    values: NDArray[np.float64]
    maps: NDArray[np.float32] | None = None
    intervals: NDArray[np.float64] | None = None
    attention: NDArray[np.float64] | None = None
    prompt: str = ""
    how: str = "occlusion"
    target: str = "the image"
    absent: str = ""
    calls: int = 0
    levels: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    picture: Image.Image | None = None
    positions: tuple[tuple[int, ...], ...] = ()
    trace: Any = field(default=None, repr=False)
    image: int = 0
    ask: Values | None = field(default=None, repr=False)

    @property
    def scores(self) -> dict[str, float]:
        """Each word's score, in the order of the prompt."""
        return {word: float(value) for word, value in zip(self.words, self.values, strict=True)}

    @property
    def order(self) -> tuple[str, ...]:
        """The words, the one with the largest score first."""
        return tuple(self.words[i] for i in np.argsort(-self.values, kind="stable"))

    def map(self, word: str) -> HeatMap:
        """Return where a word's score comes from, on the latent grid.

        A cell that the word changes against its score has 0.

        Raises:
            ValueError: it is not one of the words, or the method has no maps.
        """
        if self.maps is None:
            raise ValueError(
                f"how={self.how!r} has no maps: its score is a sum over the text, not over places; "
                "use 'occlusion', 'information', 'shapley' or 'surrogate'"
            )
        about = {"prompt": self.prompt, "how": self.how, "levels": list(self.levels)}
        found = np.clip(self.maps[self._index(word)], 0, None)
        return HeatMap(found, word, about, self.picture)

    def grid(self, words: Sequence[str] | None = None) -> Image.Image:
        """Draw the maps of words side by side, each on its own scale."""
        shown = list(self.words if words is None else words)
        cells = [[self.map(word).overlay() for word in shown]]
        return sheets.table(cells, columns=shown)

    def bar(self, width: int = 640) -> Image.Image:
        """Draw a bar for each word, in the prompt's order, with its interval where it has one."""
        title = f"{self.how}: what each word does to {self.target}"
        return charts.bars(self.words, self.values, self.intervals, title=title, width=width)

    def table(self) -> str:
        """Return the words as text, the largest score first, with attention beside."""
        wide = max(4, *(len(word) for word in self.words))
        columns = ["score", *["95 %"] * (self.intervals is not None)]
        columns += ["attention"] * (self.attention is not None)
        lines = [f"{'word':{wide}}" + "".join(f"{name:>20}" for name in columns)]
        for i in np.argsort(-self.values, kind="stable"):
            cells = [f"{self.values[i]:.4g}"]
            if self.intervals is not None:
                low, high = self.intervals[i]
                cells.append(f"{low:.3g} to {high:.3g}")
            if self.attention is not None:
                cells.append(f"{self.attention[i]:.4g}")
            lines.append(f"{self.words[i]:{wide}}" + "".join(f"{cell:>20}" for cell in cells))
        return "\n".join(lines)

    def faithfulness(self, seed: int = 0, orders: int = 8) -> Faithfulness:
        """Return how far the target falls as words go, in this order and in others.

        Words are taken away one by one, the largest score first, and given back from nothing;
        beside it in the order of their attention, and in random orders. Asks the denoiser again,
        a row for each subset that was not asked yet.

        Args:
            seed: of the random orders.
            orders: how many of them.

        Raises:
            ValueError: the attribution was not made in this process: there is no model to ask.
        """
        if self.ask is None:
            raise ValueError("faithfulness() asks the model again: call xattn.attribute first")
        rankings = {self.how: self.values}
        if self.attention is not None:
            rankings["attention"] = self.attention
        return faithfulness(self.ask, rankings, seed=seed, orders=orders)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a page of the recording, with each word's attention and causal maps on cards.

        Args:
            path: where to.

        Raises:
            ValueError: there is no recording, as for inputs.
        """
        if self.trace is None:
            raise ValueError(
                "there is no recording of attention to show beside; use bar() and map()"
            )
        self.trace.report(path, self.image, why=self)

    def rank(self, word: tuple[str, Any]) -> float:
        """Return what sorts words, or pairs of a word and more, the largest score first."""
        return -self.scores[word[0]]

    def to_json(self) -> dict[str, Any]:
        """Return scores and facts as plain JSON values."""
        return {
            "prompt": self.prompt,
            "how": self.how,
            "target": self.target,
            "absent": self.absent,
            "levels": list(self.levels),
            "calls": self.calls,
            "words": list(self.words),
            "scores": self.values.tolist(),
            "intervals": None if self.intervals is None else self.intervals.tolist(),
            "attention": None if self.attention is None else self.attention.tolist(),
            "facts": dict(self.facts),
        }

    def _index(self, word: str) -> int:
        if word not in self.words:
            raise ValueError(f"{word!r} is not one of the words: {', '.join(self.words)}")
        return self.words.index(word)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        first = ", ".join(f"{word} {self.scores[word]:.3g}" for word in self.order[:3])
        return f"Attribution({self.how} of {len(self.words)} words: {first} ...)"

    def _repr_png_(self) -> bytes:
        return sheets.png(self.bar())
