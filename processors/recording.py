"""Keeping the probabilities that were asked for, and nothing else of the attention call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn.processors.wrapping import Compute


class Recording:
    """Writes one layer's probabilities into its buffer, and leaves the layer's output alone.

    Attributes:
        live: whether calls are looked at; while False the layer runs as it was found.
        over: whether the recording has ended for good.
        rows: the rows of the batch that are recorded, as slices of it.
        tokens: the positions that are kept: a slice where they follow one another.
        buffer: (images, heads or 1, tokens, height, width), float32, where maps are written.
        share: what one layer adds to the buffer; None where the buffer is its own.
    """

    def __init__(self, name: str, heads: int) -> None:
        self.name = name
        self.heads = heads
        self.live = False
        self.over = False
        self.rows: tuple[slice, ...] = ()
        self.tokens: slice | Tensor = slice(None)
        self.buffer: Tensor | None = None
        self.share: float | None = None
        self.seen = False
        self.parts: list[Tensor] = []

    def opened(self) -> None:
        """Forgets what an interrupted call of a sliced processor left."""
        self.parts = []

    def closed(self) -> None:
        """Does nothing: the maps are written as they are seen."""

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
        self.keep(query, key, mask, scale)
        return compute(query, key, value, mask)

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
        if sum(map(len, self.parts)) >= self.rows[-1].stop * self.heads:
            whole = torch.cat(self.parts).unflatten(0, (-1, self.heads))
            self.write(_pick(whole, self.rows))
            self.parts = []
        return compute(query, key, mask)

    def keep(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
        """Writes the maps of (batch, heads, queries, channels) queries and keys."""
        if mask is not None and mask.shape[0] > 1:
            mask = _pick(mask, self.rows)
        query, key = _pick(query, self.rows), _pick(key, self.rows)
        self.write(kept_probs(query, key, mask, scale, self.tokens))

    def write(self, probs: Tensor) -> None:
        """Writes (images, heads, queries, tokens) into the buffer."""
        buffer = self.buffer
        if buffer is None:
            return
        if buffer.shape[1] == 1:
            probs = probs.mean(1, keepdim=True)
        if probs.shape[2] != buffer.shape[-2] * buffer.shape[-1]:
            raise RuntimeError(
                f"layer {self.name} has {probs.shape[2]} queries where a grid of "
                f"{tuple(buffer.shape[-2:])} was expected; please report the model's configuration"
            )
        # (images, heads, queries, tokens) -> (images, heads, tokens, height, width)
        maps = probs.transpose(-1, -2).unflatten(-1, buffer.shape[-2:])
        if self.share is None:
            buffer.copy_(maps)
        else:
            buffer.add_(maps, alpha=self.share)
        self.seen = True


def kept_probs(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, tokens: slice | Tensor
) -> Tensor:
    """Gives softmax(query keyᵀ scale) in float32, of the kept tokens: (..., queries, tokens).

    The softmax runs over every key; autocast, which would turn float32 into bfloat16 here, is
    off.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.detach().float(), key.detach().float()
        logits = torch.matmul(query * scale, key.transpose(-1, -2))
        if mask is not None:
            if mask.dtype == torch.bool:
                logits = logits.masked_fill(~mask, float("-inf"))
            else:
                logits = logits + mask
        probs = logits.softmax(-1)
    return probs[..., tokens] if isinstance(tokens, slice) else probs.index_select(-1, tokens)


def _pick(tensor: Tensor, rows: tuple[slice, ...]) -> Tensor:
    if len(rows) == 1:
        return tensor[rows[0]]
    return torch.cat([tensor[span] for span in rows])
