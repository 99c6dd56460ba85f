"""Accumulation of what the text gives to the image's cells, before a layer's last projection."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler


class Outputs(Handler):
    """Add one layer's attention outputs to a buffer; leave its output unchanged.

    Attributes:
        rows: the recorded rows of the batch, as slices.
        buffer: (images, heads, queries, channels), float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[slice, ...] = ()
        self.buffer: Tensor | None = None

    @torch.no_grad()
    def observe(self, call: AttentionCall) -> None:
        """Add the outputs of the recorded rows."""
        if self.buffer is not None:
            made = torch.cat([call.output()[span] for span in self.rows])
            self.buffer[: len(made)] += made.float()
