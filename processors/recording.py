"""Keeping the probabilities that were asked for, and nothing else of the attention call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn.processors.call import Compute, LayerHandler
from xattn.processors.probabilities import fused_attention, kept_maps, kept_probs, pick_rows


class Recording(LayerHandler):
    """Writes one layer's probabilities into its buffer, and leaves the layer's output alone.

    Attributes:
        rows: the rows of the batch that are recorded, as slices of it.
        batch: how many rows the denoiser's call has.
        images: how many of them are recorded; the buffer may have room for more.
        tokens: the positions that are kept: a slice where they follow one another.
        buffer: (images, heads or 1, tokens, height, width), float32, where maps are written.
        share: what one layer adds to the buffer; None where the buffer is its own.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__(name, heads)
        self.rows: tuple[slice, ...] = ()
        self.batch = 0
        self.images = 0
        self.tokens: slice | Tensor = slice(None)
        self.buffer: Tensor | None = None
        self.share: float | None = None
        self.parts: list[Tensor] = []

    def opened(self) -> None:
        """Forgets what an interrupted call of a sliced processor left."""
        self.parts = []

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives the model's own output, and keeps the maps of its conditional rows."""
        if query.shape[:2] != (self.batch, self.heads):
            raise RuntimeError(
                f"layer {self.name} attends with {tuple(query.shape[:2])} (rows, heads) where the "
                f"denoiser has {(self.batch, self.heads)}: xattn doesn't know what its rows are"
            )
        fused = fused_attention(query, key, value, mask, compute)
        if fused is None:
            self.keep(query, key, mask, scale)
            return compute(query, key, value, mask)
        output, sums = fused
        self.keep_fused(query, key, scale, sums)
        return output

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives the model's own probabilities, and keeps those of its conditional rows."""
        probs = kept_probs(query, key, mask, attn.scale, self.tokens)
        self.parts.append(probs)  # (some of batch x heads, queries, tokens)
        if sum(map(len, self.parts)) >= self.batch * self.heads:
            whole = torch.cat(self.parts).unflatten(0, (-1, self.heads))
            self.write(pick_rows(whole, self.rows))
            self.parts = []
        return compute(query, key, mask)

    def keep(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
        """Writes the maps of (batch, heads, queries, channels) queries and keys."""
        if mask is not None and mask.shape[0] > 1:
            mask = pick_rows(mask, self.rows)
        query, key = pick_rows(query, self.rows), pick_rows(key, self.rows)
        self.write(kept_probs(query, key, mask, scale, self.tokens))

    def keep_fused(self, query: Tensor, key: Tensor, scale: float, sums: Tensor) -> None:
        """Writes the maps of queries and keys whose softmax has the given sums."""
        query, key, sums = (pick_rows(t, self.rows) for t in (query, key, sums))
        self.write_maps(kept_maps(query, key, scale, sums, self.tokens))

    def write(self, probs: Tensor) -> None:
        """Writes (images, heads, queries, tokens) into the buffer."""
        if self.buffer is not None and self.buffer.shape[1] == 1:
            probs = probs.mean(1, keepdim=True)
        self.write_maps(probs.transpose(-1, -2))

    def write_maps(self, maps: Tensor) -> None:
        """Writes (images, heads, tokens, queries) into the buffer."""
        if self.buffer is None:
            return
        # (images, heads or 1, tokens, queries)
        buffer = self.buffer[: self.images].flatten(-2)
        if maps.shape[-1] != buffer.shape[-1]:
            raise RuntimeError(
                f"layer {self.name} has {maps.shape[-1]} queries where a grid of "
                f"{tuple(self.buffer.shape[-2:])} was expected; please report the model's "
                "configuration"
            )
        averaged = buffer.shape[1] == 1 < maps.shape[1]
        if averaged and self.share is None:
            torch.mean(maps, 1, keepdim=True, out=buffer)
        else:
            maps = maps.mean(1, keepdim=True) if averaged else maps
            buffer.copy_(maps) if self.share is None else buffer.add_(maps, alpha=self.share)
        self.seen = True
