"""Heads and concepts: which head knows what, and what a picture is like without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.instruments.weigher import Weigher
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened
from xattn.views import charts, sheets

HeadSet = dict[str, tuple[int, ...]]
"""Heads of each layer, by its name: a ``heads=`` for ``heatmap``."""


class Head(NamedTuple):
    """A head of a layer."""

    layer: str
    head: int


@dataclass(frozen=True, eq=False)
class Dissection:
    """A table of heads and concepts.

    ``table["colour"]`` are the quarter of all heads that know the concept best, by layer.

    Attributes:
        heads: the heads, in the model's order.
        concepts: the concepts.
        values: (heads, concepts): IoU, or relevance, which is 1 for an average head.
        counts: how many masks, or pictures, each concept had.
        by: "iou" or "relevance".
        words: the words of each concept.
    """

    heads: tuple[Head, ...]
    concepts: tuple[str, ...]
    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    by: str = "iou"
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __getitem__(self, concept: str) -> HeadSet:
        return self.top(concept, max(1, round(len(self.heads) / 4)))

    def order(self, concept: str) -> list[Head]:
        """Return all heads, the one that knows a concept best first.

        Raises:
            ValueError: it is not one of the concepts.
        """
        if concept not in self.concepts:
            raise ValueError(f"{concept!r} is not one of the concepts: {', '.join(self.concepts)}")
        column = self.values[:, self.concepts.index(concept)]
        return [self.heads[i] for i in np.argsort(-column, kind="stable")]

    def random(self, seed: int = 0) -> list[Head]:
        """Return all heads in a random order: what an order by concept is to be compared with."""
        order = np.random.default_rng(seed).permutation(len(self.heads))
        return [self.heads[i] for i in order]

    def top(self, concept: str, count: int) -> HeadSet:
        """Return so many of the heads that know a concept best, by layer."""
        return by_layer(self.order(concept)[:count])

    @property
    def every(self) -> HeadSet:
        """All heads, by layer: the heat map of all is the default one."""
        return by_layer(self.heads)

    def detectors(self, threshold: float = 0.04) -> list[tuple[Head, str, float]]:
        """Return each head whose best concept is above a threshold, the best first.

        0.04 is the threshold of network dissection (Bau et al. 2017) for IoU.
        """
        best = self.values.argmax(1)
        found = [
            (head, self.concepts[c], float(row[c]))
            for head, c, row in zip(self.heads, best, self.values, strict=True)
            if row[c] > threshold
        ]
        return sorted(found, key=lambda each: -each[2])

    def sentences(self, threshold: float = 0.04) -> list[str]:
        """Return a sentence for each head: its label, and how sure it is."""
        known = {head: (concept, value) for head, concept, value in self.detectors(threshold)}
        what = "IoU" if self.by == "iou" else "relevance"
        names = dict(zip(self._layers, sheets.shortened(self._layers), strict=True))
        found = []
        for head in self.heads:
            where = f"head {head.head} of {names[head.layer]}"
            if head in known:
                concept, value = known[head]
                found.append(f"{where} knows {concept!r} best: {what} {value:.3f}")
            else:
                found.append(f"{where} detects none of the concepts above {threshold:g}")
        return found

    @contextmanager
    def weaken(
        self,
        pipe: Any,
        concept: str,
        count: int | None = None,
        *,
        weight: float = 0.0,
        heads: Sequence[Head] | None = None,
    ) -> Iterator[HeadSet]:
        """Make a concept's words weaker in the heads that know it, in every call of the block.

        Args:
            pipe: the pipeline.
            concept: its words are weakened, where a prompt has them.
            count: in how many heads, the best first; a quarter of all by default.
            weight: what the heads' attention to these words is multiplied by.
            heads: other heads in their place, such as ``table.random(0)[:4]``.

        Yields:
            The heads, by layer.

        Raises:
            ValueError: it is not one of the concepts, or the pipeline lacks these layers.
        """
        chosen = self[concept] if count is None else self.top(concept, count)
        if heads is not None:
            chosen = by_layer(heads)
        weigher = Weigher(chosen, list(self.words.get(concept, [concept])), weight)
        with opened(PipelineOrigin(pipe), [weigher]):
            yield chosen

    def table(self) -> str:
        """Return the table as text, a line for each head, its best concept marked."""
        names = [f"{name} {head.head}" for name, head in zip(self._names, self.heads, strict=True)]
        wide = max(len(name) for name in names)
        cells = max(8, *(len(concept) + 2 for concept in self.concepts))
        lines = [f"{'head':{wide}}" + "".join(f"{concept:>{cells}}" for concept in self.concepts)]
        for name, row in zip(names, self.values, strict=True):
            marks = ["*" if c == row.argmax() else "" for c in range(len(row))]
            shown = [f"{mark}{value:.3f}" for mark, value in zip(marks, row, strict=True)]
            lines.append(f"{name:{wide}}" + "".join(f"{cell:>{cells}}" for cell in shown))
        return "\n".join(lines)

    def plot(self) -> Image.Image:
        """Draw the table: a row for each head, a column for each concept."""
        names = [f"{name} {head.head}" for name, head in zip(self._names, self.heads, strict=True)]
        title = "IoU of heads with concepts" if self.by == "iou" else "relevance of heads"
        return charts.matrix(self.values, names, self.concepts, title=title)

    @property
    def _layers(self) -> list[str]:
        return list(dict.fromkeys(head.layer for head in self.heads))

    @property
    def _names(self) -> list[str]:
        short = dict(zip(self._layers, sheets.shortened(self._layers), strict=True))
        return [short[head.layer] for head in self.heads]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"Dissection({len(self.heads)} heads, {len(self.concepts)} concepts, by {self.by})"

    def _repr_png_(self) -> bytes:
        return sheets.png(self.plot())


def by_layer(heads: Sequence[Head]) -> HeadSet:
    """Return heads grouped by their layer, each ascending."""
    found: dict[str, list[int]] = {}
    for head in heads:
        found.setdefault(head.layer, []).append(head.head)
    return {layer: tuple(sorted(several)) for layer, several in found.items()}
