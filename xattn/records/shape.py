"""The axes of a recording's buffer, its size, and its views by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.records.run import Layer


@dataclass(frozen=True)
class Shape:
    """The axes of a recording, from which its bytes follow before anything is run.

    Attributes:
        layers: what is kept, one entry for each layer or, without that axis, for each grid.
        images: recorded rows of the batch.
        tokens: kept positions of the token axis.
        steps: of the schedule; None where a user's own loop doesn't say.
        keep: which of "step", "layer", "head" are kept.
        dtype: of the kept maps.
    """

    layers: tuple[Layer, ...]
    images: int
    tokens: int
    steps: int | None
    keep: frozenset[str]
    dtype: torch.dtype

    def of_layer(self, layer: Layer) -> tuple[int, ...]:
        """Gives (images, heads, tokens, height, width) of one step of a layer."""
        heads = layer.heads if "head" in self.keep else 1
        return (self.images, heads, self.tokens, *layer.grid)

    @property
    def numel(self) -> int:
        """How many numbers one step has."""
        return sum(torch.Size(self.of_layer(layer)).numel() for layer in self.layers)

    @property
    def rows(self) -> int:
        """How many steps are kept apart."""
        return (self.steps or 1) if "step" in self.keep else 1

    @property
    def nbytes(self) -> int:
        """The bytes that the finished recording takes."""
        return self.rows * self.numel * self.dtype.itemsize


def views(flat: Tensor, shape: Shape) -> list[Tensor]:
    """Splits (..., numel) into one view for each layer, (..., images, heads, tokens, h, w)."""
    sizes = [torch.Size(shape.of_layer(layer)) for layer in shape.layers]
    parts = flat.split([size.numel() for size in sizes], dim=-1)
    lead = flat.shape[:-1]
    return [part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)] or [
        flat.reshape(*lead, 0)
    ]


def shapes_of(shape: Shape, rows: int) -> tuple[tuple[int, ...], ...]:
    """Gives each layer's (steps, images, heads, tokens, height, width)."""
    return tuple((rows, *shape.of_layer(layer)) for layer in shape.layers)
