"""Head relevance vectors (Park et al. 2025, section 3): which concept a head attends to, by words.

In every layer of every pass one word of each concept, drawn at random, stands in the prompt's
place: a softmax over all their tokens at each place, the mean over the picture, and a point for the
concept with the largest. The picture is that of its own prompt. A concept's points are divided by
their mean over the heads, so that 1 is an average head.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.api.concepts import encoded_concepts
from xattn.api.probe import passed
from xattn.attribution.maps import head_maps
from xattn.attribution.marked import Marked
from xattn.instruments.relevance import HeadPoints
from xattn.maps import select
from xattn.models import family_of_pipeline
from xattn.models.sizes import denoiser_of
from xattn.records.options import Options
from xattn.records.run import LayerFilter, Run
from xattn.results.dissection import Dissection, Head
from xattn.text.prompt import WordError


def reads_alone(pipe: Any) -> bool:
    """Return whether a model has layers whose keys are text alone, so that others can stand in."""
    layers = family_of_pipeline(pipe).layers(denoiser_of(pipe))
    return any(layer.role == "cross" for layer in layers)


def of_words(
    pipe: Any,
    pictures: Sequence[Marked],
    words: dict[str, list[str]],
    *,
    levels: Sequence[float],
    layers: LayerFilter,
    batch: int,
    seed: int,
) -> Dissection:
    """Return each head's relevance to each concept.

    Args:
        pipe: the pipeline.
        pictures: with their prompts.
        words: of each concept.
        levels: shares of the noise schedule.
        layers: those of the table, as for ``heatmap``.
        batch: how many pictures pass together.
        seed: of noise and words.

    Raises:
        ValueError: there are fewer than two concepts to choose from.
    """
    if len(words) < 2:
        raise ValueError(f"by='relevance' needs two concepts or more that compete; got {[*words]}")
    points = HeadPoints([encoded_concepts(pipe, own) for own in words.values()], seed)
    trace = passed(
        pipe, [each.image for each in pictures], [each.prompt for each in pictures],
        Options.of(keep=("layer",)), levels=levels, seed=seed, batch=batch, instruments=[points],
    )  # fmt: skip
    kept = [trace.run.layers[n].name for n in select.layers_of(trace.run, layers)[0]]
    rows = {name: points.points[name].numpy() for name in kept}
    heads = tuple(Head(name, n) for name, each in rows.items() for n in range(len(each)))
    counts = np.concatenate(list(rows.values())).astype(np.float64)
    values = counts / np.maximum(counts.mean(0), 1e-12)
    asked = np.full(len(words), len(pictures))
    return Dissection(heads, tuple(words), values, asked, "relevance", words)


class Points:
    """A point for the concept that each head attends to most, among those of each prompt.

    Where text and image attend together, words that nobody prompted have no keys to attend to.
    """

    def __init__(self, words: dict[str, list[str]]) -> None:
        self.words = words
        self.points: dict[Head, NDArray[np.float64]] = {}
        self.counts = np.zeros(len(words), dtype=np.int64)

    def add(self, run: Run, picture: Marked, layers: LayerFilter) -> None:
        """Let the concepts of a picture's words compete in each head."""
        own: dict[int, dict[Head, NDArray[np.float32]]] = {}
        for c, words in enumerate(self.words.values()):
            for word in words:
                with suppress(WordError):
                    own.setdefault(c, head_maps(run, word, layers))
        for c in own:
            self.counts[c] += 1
        if len(own) < 2:
            return
        for head in next(iter(own.values())):
            # probabilities are exponentials of logits: their shares are a softmax over concepts
            stack = np.stack([maps[head] for maps in own.values()])
            shares = stack / np.maximum(stack.sum(0), 1e-12)
            row = self.points.setdefault(head, np.zeros(len(self.words)))
            row[list(own)[int(shares.mean((1, 2)).argmax())]] += 1

    def found(self) -> tuple[tuple[Head, ...], NDArray[np.float64], NDArray[np.int64]]:
        """Return the heads, their relevance (heads, concepts), and the concepts' counts.

        Raises:
            ValueError: no picture has words of two concepts.
        """
        if not self.points:
            raise ValueError("by='relevance' needs pictures with words of two concepts or more")
        points = np.stack(list(self.points.values()))
        return tuple(self.points), points / np.maximum(points.mean(0), 1e-12), self.counts
