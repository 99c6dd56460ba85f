"""The axes and size of a recording's buffer, and its views by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.records.run import Layer


@dataclass(frozen=True)
class Shape:
    """The axes of a recording; they determine its size before anything runs.

    Attributes:
        layers: one entry per kept layer or, without the layer axis, per grid.
        images: number of recorded images.
        tokens: number of kept token positions.
        steps: number of steps in the schedule; None in a custom loop without a scheduler.
        keep: the axes kept, of "step", "layer", "head".
        dtype: dtype of the kept maps.
    """

    layers: tuple[Layer, ...]
    images: int
    tokens: int
    steps: int | None
    keep: frozenset[str]
    dtype: torch.dtype

    def of_layer(self, layer: Layer) -> tuple[int, ...]:
        """Return one step's shape of a layer: (images, heads, tokens, height, width)."""
        heads = layer.heads if "head" in self.keep else 1
        return (self.images, heads, self.tokens, *layer.grid)

    @property
    def numel(self) -> int:
        """Number of elements per step."""
        return sum(torch.Size(self.of_layer(layer)).numel() for layer in self.layers)

    @property
    def stored_steps(self) -> int:
        """Number of stored steps: 1 without the step axis."""
        return (self.steps or 1) if "step" in self.keep else 1

    @property
    def nbytes(self) -> int:
        """Size of the finished recording in bytes."""
        return self.stored_steps * self.numel * self.dtype.itemsize


def views(flat: Tensor, shape: Shape) -> list[Tensor]:
    """Split (..., numel) into one view per layer, (..., images, heads, tokens, height, width)."""
    sizes = [torch.Size(shape.of_layer(layer)) for layer in shape.layers]
    parts = flat.split([size.numel() for size in sizes], dim=-1)
    lead = flat.shape[:-1]
    return [part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)] or [
        flat.reshape(*lead, 0)
    ]


def shapes_of(shape: Shape, steps: int) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each layer's maps: (steps, images, heads, tokens, height, width)."""
    return tuple((steps, *shape.of_layer(layer)) for layer in shape.layers)
