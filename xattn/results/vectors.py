"""Directions of concepts, and how much of them the places of a picture represent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xattn.maps import competition, directions, select
from xattn.records.run import LayerFilter, Run
from xattn.results.signed import SignedMap


@dataclass(frozen=True, eq=False)
class ConceptVector:
    """The direction of a concept in each cross-attention layer.

    Attributes:
        name: the word or phrase.
        directions: by the layer's name, of length one, (heads x channels): the values of the
            concept's tokens less those of the empty text.
    """

    name: str
    directions: Mapping[str, Tensor]

    def __repr__(self) -> str:
        return f"ConceptVector({self.name!r}, {len(self.directions)} layers)"

    def cosine(self, other: ConceptVector) -> float:
        """Return how alike two concepts are: the mean of the layers' cosines, in [-1, 1]."""
        both = [name for name in self.directions if name in other.directions]
        each = [float(self.directions[name] @ other.directions[name]) for name in both]
        return float(np.mean(each))


class Similarity(SignedMap):
    """The cosine of each place's output with a concept's direction, in [-1, 1]."""


def similarity(run: Run, vector: ConceptVector, image: int, layers: LayerFilter) -> Similarity:
    """Return the map of a concept's direction."""
    index = select.image_index(run, image)
    values = directions.similarity(run, vector.directions, index, layers)
    picture = run.images[index] if index < len(run.images) else None
    return Similarity(values.numpy(), vector.name, picture)


def represented(
    run: Run,
    place: tuple[float, float],
    vectors: Sequence[ConceptVector],
    image: int,
    layers: LayerFilter,
) -> list[tuple[str, float]]:
    """Return (concept, cosine) at a place, the largest first."""
    row, column = competition.cell_of(place, run.latent)
    found = [
        (vector.name, float(similarity(run, vector, image, layers).array[row, column]))
        for vector in vectors
    ]
    return sorted(found, key=lambda each: -each[1])
