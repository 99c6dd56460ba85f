"""AffinityRecorder: what the image's places attend to among themselves."""

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
"""The most queries of a grid whose self-attention is kept: 2 MB for each image."""


class AffinityRecorder(Instrument):
    """Keep the mean of self-attention over heads, steps and layers of the finest fitting grid.

    It stands before the recorder, whose run takes what it keeps.
    """

    def __init__(self) -> None:
        self.layers: dict[AttentionLayer, Affinity] = {}
        self._sums: Tensor | None = None

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each self-attention layer of the denoiser.

        Raises:
            ValueError: the model has no self-attention of its own.
        """
        own = [layer for layer in layers if layer.role == "self" and not layer.component]
        if not own:
            raise ValueError("affinity=True: this model has no self-attention of its own")
        self.layers = {layer: Affinity() for layer in own}
        return self.layers

    def begin(self, sampling: Sampling) -> None:
        """Make room for the finest grid that isn't too fine, and point its layers there.

        Raises:
            MemoryError: it would not fit.
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
        """Point the layers at the rows that follow the prompts."""
        if call.component:
            return
        for handler in self.layers.values():
            handler.live = handler.buffer is not None
            handler.rows = call.conditional[0]

    def end(self, sampling: Sampling) -> None:
        """Average over the calls of a run, one cut short among them.

        Each call adds shares that sum to one, so the sums say how many calls there were.
        """
        sums, self._sums = self._sums, None
        if sums is not None and sampling.affinity is not None:
            mean = sums / sums.sum(-1, keepdim=True).clamp_min(1e-6)
            sampling.affinity.copy_(mean.view(sampling.affinity.shape))
        for handler in self.layers.values():
            handler.buffer = None
