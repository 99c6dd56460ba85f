"""Adding up what the image's places attend to among themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler


class Affinity(Handler):
    """Add one layer's attention of the image to itself to a buffer; leave its output alone.

    Attributes:
        rows: the rows of the batch that are recorded.
        buffer: (images, queries, queries), float32, where the mean over heads is added.
        share: what this layer adds of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = slice(None)
        self.buffer: Tensor | None = None
        self.share = 1.0

    def observe(self, call: AttentionCall) -> None:
        """Add what the rows that follow the prompts attend to."""
        if self.buffer is None:
            return
        call.prepare()
        with torch.no_grad():
            probs = call.probabilities(self.rows).mean(1)  # (rows, queries, queries)
            self.buffer[: len(probs)].add_(probs, alpha=self.share)
