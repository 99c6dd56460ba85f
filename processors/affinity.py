"""Accumulation of the attention between the image's cells."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler


class Affinity(Handler):
    """Add one layer's attention from image to image to a buffer; leave its output unchanged.

    Attributes:
        rows: the recorded rows of the batch.
        buffer: (images, queries, queries), float32; the mean over heads is added here.
        share: this layer's weight in the buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = slice(None)
        self.buffer: Tensor | None = None
        self.share = 1.0

    def observe(self, call: AttentionCall) -> None:
        """Add the attention of the recorded rows."""
        if self.buffer is None:
            return
        call.prepare()
        with torch.no_grad():
            probs = call.affinity(self.rows)  # (rows, queries, queries)
            self.buffer[: len(probs)].add_(probs, alpha=self.share)
