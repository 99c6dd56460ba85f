"""How the focus of a word moves over the layers and the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn.maps import daam, measures, select
from xattn.records.run import LayerFilter, Run
from xattn.views import sheets


@dataclass(frozen=True, eq=False)
class Evolution:
    """The entropy of a word's map in every layer at every step.

    Attributes:
        word: whose maps they are.
        entropy: (layers, steps), in [0, 1]: 0 where all attention is on one cell, 1 where it is
            spread evenly. Each on the layer's own grid, as a share of that grid's highest.
        names: the layers, in the order of the rows.
        timesteps: the schedule's, in the order of the columns.
        levels: shares of the schedule, in the order of the columns; of a probe alone.
    """

    word: str
    entropy: NDArray[np.float64]
    names: tuple[str, ...]
    timesteps: tuple[float, ...]
    levels: tuple[float, ...] = ()

    @property
    def focused_layers(self) -> tuple[str, ...]:
        """The layers from the most to the least focused, by their mean entropy."""
        order = np.argsort(self.entropy.mean(axis=1), kind="stable")
        return tuple(self.names[i] for i in order)

    @property
    def focused_steps(self) -> tuple[int, ...]:
        """The steps from the most to the least focused, by their mean entropy."""
        return tuple(int(i) for i in np.argsort(self.entropy.mean(axis=0), kind="stable"))

    def plot(self, size: tuple[int, int] = (480, 900)) -> Image.Image:
        """Return the entropy as a picture of (height, width): a row a layer, a column a step."""
        how: Any = {"word": self.word, "size": size, "levels": self.levels}
        return sheets.evolution(self.entropy, self.names, **how)

    def __repr__(self) -> str:
        layers, steps = self.entropy.shape
        axis = "levels" if self.levels else "steps"
        return f"Evolution({self.word!r}, {layers} layers x {steps} {axis})"

    def _repr_png_(self) -> bytes:
        return sheets.png(self.plot())


def evolution(
    run: Run,
    word: select.Asked,
    image: int = 0,
    *,
    layers: LayerFilter = "all",
    occurrence: int | None = None,
) -> Evolution:
    """Return the entropy of a word's map in each layer at each step.

    Raises:
        ValueError: the step axis was not kept, or the word is not in the recording.
    """
    positions = select.word_positions(run, word, image, occurrence)
    chosen, _ = select.layers_of(run, layers)
    select.need(run, "step", "the evolution over the steps")
    rows = []
    for layer in chosen:
        heat = daam.step_layer_maps(run, layer, positions, image).mean(1)  # (steps, h, w)
        rows.append([measures.entropy(step) for step in heat])
    names = tuple(run.layers[layer].name for layer in chosen)
    timesteps = run.timesteps[: run.done]
    return Evolution(str(word), np.array(rows), names, timesteps, tuple(run.levels[: run.done]))
