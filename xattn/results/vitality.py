"""Vitality: how much the image changes without each of the layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.views import sheets


@dataclass(frozen=True, eq=False)
class Vitality:
    """How much the image changes where a layer is passed over (Avrahami et al. 2025).

    Attributes:
        names: the layers, in the model's order.
        values: (layers, prompts), 1 - the similarity of the images with and without the layer.
        prompts: the prompts that were drawn.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    prompts: tuple[str, ...]

    @property
    def scores(self) -> dict[str, float]:
        """Each layer's vitality, the mean over the prompts."""
        means = self.values.mean(1)
        return {name: float(mean) for name, mean in zip(self.names, means, strict=True)}

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose vitality is above the mean of all: a ``layers=`` for record and edit."""
        return self.above(float(self.values.mean()))

    def above(self, share: float) -> tuple[str, ...]:
        """Return the layers of a vitality above a number, in the model's order.

        Raises:
            ValueError: there are none.
        """
        found = tuple(name for name, score in self.scores.items() if score > share)
        if not found:
            most = max(self.scores.values())
            raise ValueError(f"above({share:g}): no layer; the most vital has {most:.3g}")
        return found

    def top(self, count: int) -> tuple[str, ...]:
        """Return so many of the most vital layers, in the model's order.

        Raises:
            ValueError: count is not between 1 and the number of layers.
        """
        if not 1 <= count <= len(self.names):
            raise ValueError(f"top({count}) must be between 1 and {len(self.names)} layers")
        order = np.argsort(-self.values.mean(1), kind="stable")[:count]
        return tuple(self.names[i] for i in sorted(order))

    def table(self) -> str:
        """Return the layers as text, the most vital first, with the range over the prompts."""
        width = max(len(name) for name in self.names)
        lines = [f"{'layer':{width}}  vitality  least   most"]
        for i in np.argsort(-self.values.mean(1), kind="stable"):
            row = self.values[i]
            lines.append(
                f"{self.names[i]:{width}}  {row.mean():8.4f}  {row.min():.4f}  {row.max():.4f}"
            )
        return "\n".join(lines)

    def plot(self, width: int = 640) -> Image.Image:
        """Return a picture: a bar for each layer, in the model's order."""
        return sheets.bars(self.names, self.values.mean(1), title="vitality", width=width)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"Vitality({len(self.names)} layers, {len(self.prompts)} prompts)"

    def _repr_png_(self) -> bytes:
        return sheets.png(self.plot())
