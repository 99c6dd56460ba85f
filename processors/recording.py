"""Keeping the maps that were asked for, and nothing else of the attention call."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.probabilities import Tokens


class Recording(Handler):
    """Write one layer's maps into its buffer, and leave the layer's output alone.

    Attributes:
        name: the layer's.
        heads: how many it has.
        rows: the rows of the batch that are recorded, as slices of it.
        batch: how many rows the denoiser's call has.
        images: how many of them are recorded; the buffer may have room for more.
        tokens: the positions that are kept: a slice where they follow one another.
        buffer: (images, heads or 1, tokens, height, width), float32, where maps are written.
        share: what one layer adds to the buffer; None where the buffer is its own.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__()
        self.name = name
        self.heads = heads
        self.rows: tuple[slice, ...] = ()
        self.batch = 0
        self.images = 0
        self.tokens: Tokens = slice(None)
        self.buffer: Tensor | None = None
        self.share: float | None = None

    def observe(self, call: AttentionCall) -> None:
        """Write the maps of the rows that follow the prompts.

        Raises:
            RuntimeError: the call's rows or queries are not those of the denoiser's call.
        """
        if self.buffer is None:
            return
        if call.query.shape[:2] != (self.batch, self.heads):
            raise RuntimeError(
                f"layer {self.name} attends with {tuple(call.query.shape[:2])} (rows, heads) "
                f"where the denoiser has {(self.batch, self.heads)}: xattn doesn't know what its "
                "rows are; please report the model's configuration"
            )
        call.prepare()
        with torch.no_grad():
            parts = [call.maps(span, self.tokens) for span in self.rows]
            self.write(parts[0] if len(parts) == 1 else torch.cat(parts))

    def write(self, maps: Tensor) -> None:
        """Write (images, heads, tokens, queries) into the buffer.

        Raises:
            RuntimeError: the queries are not as many as the grid has cells.
        """
        if self.buffer is None:
            return
        buffer = self.buffer[: self.images].flatten(-2)  # (images, heads or 1, tokens, queries)
        if maps.shape[-1] != buffer.shape[-1]:
            raise RuntimeError(
                f"layer {self.name} has {maps.shape[-1]} queries where a grid of "
                f"{tuple(self.buffer.shape[-2:])} was expected; please report the model's "
                "configuration"
            )
        maps = maps.float()
        averaged = buffer.shape[1] == 1 < maps.shape[1]
        if averaged and self.share is None:
            torch.mean(maps, 1, keepdim=True, out=buffer)
            return
        maps = maps.mean(1, keepdim=True) if averaged else maps
        buffer.copy_(maps) if self.share is None else buffer.add_(maps, alpha=self.share)
