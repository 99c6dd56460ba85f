"""AffinityRecorder: self-attention between the cells of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.affinity import Affinity
from xattn.processors.call import Handler
from xattn.records.room import check_room_for
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling

CELLS = 32 * 32
"""Maximum number of queries of a grid with kept self-attention: 2 MB per image."""


class AffinityRecorder(Instrument):
    """Keep the mean self-attention over heads, steps and layers of the finest grid that fits.

    It runs before the recorder, whose run includes the result.
    """

    def __init__(self) -> None:
        self.layers: dict[AttentionLayer, Affinity] = {}
        self._sums: Tensor | None = None

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer of the denoiser where the image attends to itself.

        Raises:
            ValueError: the model has no such layers.
        """
        roles = ("self", "joint")
        own = [layer for layer in layers if layer.role in roles and not layer.component]
        if not own:
            raise ValueError("affinity=True: in this model the image does not attend to itself")
        self.layers = {layer: Affinity() for layer in own}
        return self.layers

    def begin(self, sampling: Sampling) -> None:
        """Allocate the buffer for the finest grid within the limit, and aim its layers at it.

        Raises:
            MemoryError: the buffer does not fit.
        """
        grids = {sampling.grid(layer) for layer in self.layers}
        fitting = [g for g in grids if g[0] * g[1] <= CELLS]
        grid = max(fitting) if fitting else min(grids)
        cells = grid[0] * grid[1]
        chosen = [each for layer, each in self.layers.items() if sampling.grid(layer) == grid]
        check_room_for("affinities take", 6 * sampling.images * cells**2, sampling.device)
        self._sums = torch.zeros(sampling.images, cells, cells, device=sampling.device)
        for handler in chosen:
            handler.buffer, handler.share = self._sums, 1 / len(chosen)
        sampling.affinity = torch.zeros(sampling.images, *grid, *grid, dtype=torch.float16)

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the conditional rows."""
        if call.component:
            return
        for handler in self.layers.values():
            handler.live = handler.buffer is not None
            handler.rows = call.conditional[0]

    def end(self, sampling: Sampling) -> None:
        """Average over the calls of a run, even one cut short.

        What joint attention gives to the text is left out, so rows are brought to a sum of one.
        """
        sums, self._sums = self._sums, None
        if sums is not None and sampling.affinity is not None:
            mean = sums / sums.sum(-1, keepdim=True).clamp_min(1e-6)
            sampling.affinity.copy_(mean.view(sampling.affinity.shape))
        for handler in self.layers.values():
            handler.buffer = None
