"""Units and concepts: which head or channel knows what, and what pictures are without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.instruments.channels import chosen_modules, weakened
from xattn.instruments.weigher import Weigher
from xattn.models.sizes import denoiser_of
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened
from xattn.views import charts, sheets

HeadSet = dict[str, tuple[int, ...]]
"""Heads of each layer, by its name: a ``heads=`` for ``heatmap``."""

Unit = tuple[str, int]
"""A layer's name, and the number of one of its heads or channels."""


class Head(NamedTuple):
    """A head of a layer."""

    layer: str
    head: int


@dataclass(frozen=True, eq=False)
class Dissection:
    """A table of heads, or channels, and concepts.

    ``table["colour"]`` are the quarter of all heads that know the concept best, by layer.

    Attributes:
        heads: the heads, or channels, in the model's order.
        concepts: the concepts.
        values: (heads, concepts): IoU, or relevance, which is 1 for an average head.
        counts: how many masks, or pictures, each concept had.
        by: "iou" or "relevance".
        words: the words of each concept.
        units: "heads" or "channels".
    """

    heads: tuple[Any, ...]
    concepts: tuple[str, ...]
    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    by: str = "iou"
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    units: str = "heads"

    def __getitem__(self, concept: str) -> HeadSet:
        return self.top(concept, max(1, round(len(self.heads) / 4)))

    def order(self, concept: str) -> list[Any]:
        """Return all heads, the one that knows a concept best first.

        Raises:
            ValueError: it is not one of the concepts.
        """
        if concept not in self.concepts:
            raise ValueError(f"{concept!r} is not one of the concepts: {', '.join(self.concepts)}")
        column = self.values[:, self.concepts.index(concept)]
        return [self.heads[i] for i in np.argsort(-column, kind="stable")]

    def random(self, seed: int = 0) -> list[Any]:
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

    def detectors(self, threshold: float = 0.04) -> list[tuple[Any, str, float]]:
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
            where = f"{self.units[:-1]} {head[1]} of {names[head[0]]}"
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
        heads: Sequence[Any] | None = None,
    ) -> Iterator[HeadSet]:
        """Make a concept's words weaker in the heads that know it, in every call of the block.

        Channels are multiplied by the weight themselves, at every place and in every row.

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
        if self.units == "channels":
            with weakened(chosen_modules(denoiser_of(pipe), list(chosen)), chosen, weight):
                yield chosen
            return
        weigher = Weigher(chosen, list(self.words.get(concept, [concept])), weight)
        with opened(PipelineOrigin(pipe), [weigher]):
            yield chosen

    def table(self, count: int | None = None) -> str:
        """Return the table as text, a line for each head, its best concept marked.

        Args:
            count: how many lines, the surest units first; all heads, or the first 40 channels, in
                the model's order where that is all of them.
        """
        shown = self._shown(count)
        names = [f"{self._names[i]} {self.heads[i][1]}" for i in shown]
        wide = max(len(name) for name in names)
        cells = max(8, *(len(concept) + 2 for concept in self.concepts))
        lines = [f"{'head':{wide}}" + "".join(f"{concept:>{cells}}" for concept in self.concepts)]
        for name, row in zip(names, self.values[shown], strict=True):
            marks = ["*" if c == row.argmax() else "" for c in range(len(row))]
            drawn = [f"{mark}{value:.3f}" for mark, value in zip(marks, row, strict=True)]
            lines.append(f"{name:{wide}}" + "".join(f"{cell:>{cells}}" for cell in drawn))
        return "\n".join(lines)

    def plot(self, count: int | None = None) -> Image.Image:
        """Draw the table: a row for each head, a column for each concept.

        Args:
            count: how many rows, as for ``table``.
        """
        shown = self._shown(count)
        names = [f"{self._names[i]} {self.heads[i][1]}" for i in shown]
        title = f"IoU of {self.units} with concepts" if self.by == "iou" else "relevance of heads"
        return charts.matrix(self.values[shown], names, self.concepts, title=title)

    def _shown(self, count: int | None) -> list[int]:
        """Return the units to show: all in their order, or so many of the surest."""
        most = 40 if count is None and self.units == "channels" else count
        if most is None or most >= len(self.heads):
            return list(range(len(self.heads)))
        surest = np.argsort(-self.values.max(1), kind="stable")[:most]
        return [int(i) for i in surest]

    @cached_property
    def _layers(self) -> list[str]:
        return list(dict.fromkeys(layer for layer, _ in self.heads))

    @cached_property
    def _names(self) -> list[str]:
        short = dict(zip(self._layers, sheets.shortened(self._layers), strict=True))
        return [short[layer] for layer, _ in self.heads]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        facts = f"{len(self.heads)} {self.units}, {len(self.concepts)} concepts, by {self.by}"
        return f"Dissection({facts})"

    def _repr_png_(self) -> bytes:
        return sheets.png(self.plot())


def by_layer(heads: Sequence[Any]) -> HeadSet:
    """Return heads grouped by their layer, each ascending."""
    found: dict[str, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return {layer: tuple(sorted(several)) for layer, several in found.items()}
