"""OutputRecorder: what each cross-attention layer's text gives to the image's cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.processors.outputs import Outputs
from xattn.records.room import check_room_for
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class OutputRecorder(Instrument):
    """Keep the mean over the calls of each cross-attention layer's outputs.

    It runs after the recorder, whose run receives the result.
    """

    def __init__(self) -> None:
        self.layers: dict[AttentionLayer, Outputs] = {}
        self._calls = 0

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each cross-attention layer of the denoiser.

        Raises:
            ValueError: the model has no such layers.
        """
        own = [layer for layer in layers if layer.role == "cross" and not layer.component]
        if not own:
            raise ValueError(
                "outputs=True needs layers of cross-attention; in joint attention concepts are "
                "compared with outputs by also=, in the form 'output'"
            )
        self.layers = {layer: Outputs() for layer in own}
        return self.layers

    def begin(self, sampling: Sampling) -> None:
        """Allocate the buffers.

        Raises:
            MemoryError: they do not fit.
        """
        shapes = {layer: self._shape(layer, sampling) for layer in self.layers}
        numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
        check_room_for("outputs take", 6 * numbers, sampling.device)  # sums, and what is kept
        for layer, handler in self.layers.items():
            handler.buffer = torch.zeros(shapes[layer], device=sampling.device)
        self._calls = 0

    def _shape(self, layer: AttentionLayer, sampling: Sampling) -> tuple[int, int, int, int]:
        module: Any = layer.module
        height, width = sampling.grid(layer)
        channels = module.to_v.out_features // layer.heads
        return sampling.images, layer.heads, height * width, channels

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the conditional rows."""
        if call.component:
            return
        for handler in self.layers.values():
            handler.live, handler.rows = handler.buffer is not None, call.conditional

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Count the calls of the denoiser."""
        self._calls += not call.component

    def end(self, sampling: Sampling) -> None:
        """Average over the calls of a run, even one cut short."""
        for layer, handler in self.layers.items():
            sums, handler.buffer = handler.buffer, None
            if sums is not None and sampling.run is not None and self._calls:
                grid = sampling.grid(layer)
                sampling.run.outputs[layer.name] = _kept(sums / self._calls, grid)


def _kept(mean: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (images, heads x channels, height, width) of (images, heads, queries, channels)."""
    kept: Tensor = mean.permute(0, 1, 3, 2).flatten(1, 2).unflatten(-1, grid)
    return kept.to("cpu", torch.float16)
