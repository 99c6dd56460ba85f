"""Self-attention of a layer, kept for refining maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from xattn.processors.call import Compute, LayerHandler
from xattn.processors.probabilities import kept_probs


class Affinity(LayerHandler):
    """Adds one layer's attention of the image to itself to a buffer, and leaves its output alone.

    Attributes:
        rows: the rows of the batch that are recorded.
        buffer: (images, queries, queries), float32, where the mean over heads is added.
        share: what this layer adds of it.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__(name, heads)
        self.rows = slice(None)
        self.buffer: Tensor | None = None
        self.share = 1.0

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives the model's own output, and adds what the conditional rows attend to."""
        part = mask if mask is None or len(mask) == 1 else mask[self.rows]
        self._add(kept_probs(query[self.rows], key[self.rows], part, scale, slice(None)))
        return compute(query, key, value, mask)

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives an explicit processor's own probabilities, and adds the conditional rows'.

        A sliced processor's calls bring some rows each, and are refused.
        """
        probs = compute(query, key, mask)
        several = len(probs) % self.heads == 0
        whole = probs.unflatten(0, (-1, self.heads))[self.rows] if several else probs[:0]
        if self.buffer is None or len(whole) != len(self.buffer):
            raise RuntimeError(
                f"layer {self.name} computes a few rows at a time, and affinity=True needs them "
                "all; call pipe.disable_attention_slicing() first"
            )
        self._add(whole.detach().float())
        return probs

    def _add(self, probs: Tensor) -> None:
        if self.buffer is not None:
            self.buffer[: len(probs)].add_(probs.mean(1), alpha=self.share)
        self.seen = True
