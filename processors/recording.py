"""Recording of the requested maps, and nothing else of the attention call."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.probabilities import Tokens
from xattn.processors.text_maps import text_maps


class Recording(Handler):
    """Write one layer's maps into its buffer; leave its output unchanged.

    Attributes:
        name: the layer's name.
        heads: the layer's number of heads.
        rows: the recorded rows of the batch, as slices.
        batch: number of rows in the denoiser's call.
        images: number of recorded images; the buffer may have room for more.
        frames: number of frames of each, which follow one another in the buffer. A layer takes
            them as queries of one row, or as rows of their own.
        tokens: the kept positions, as a slice if they are consecutive.
        buffer: (images x frames, heads or 1, tokens, height, width), float32, for the maps.
        of_text: whether the maps are what the text gives to the image, in joint attention.
        share: this layer's weight if it shares the buffer; None if the buffer is its own.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__()
        self.name = name
        self.heads = heads
        self.rows: tuple[slice, ...] = ()
        self.batch = 0
        self.images = 0
        self.frames = 1
        self.tokens: Tokens = slice(None)
        self.buffer: Tensor | None = None
        self.of_text = False
        self.share: float | None = None

    def observe(self, call: AttentionCall) -> None:
        """Write the maps of the recorded rows.

        Raises:
            RuntimeError: the call's rows or queries do not match the denoiser's call.
        """
        if self.buffer is None:
            return
        if call.row is not None:
            self._observe_row(call, call.row)
            return
        each = self.frames if len(call.query) == self.batch * self.frames else 1  # rows of a frame
        if call.query.shape[:2] != (self.batch * each, self.heads):
            raise RuntimeError(
                f"layer {self.name} attends with {tuple(call.query.shape[:2])} (rows, heads) "
                f"where the denoiser has {(self.batch, self.heads)}: which rows follow the "
                "prompts is unclear; please report the model's configuration"
            )
        call.prepare()
        with torch.no_grad():
            spans = (slice(span.start * each, span.stop * each) for span in self.rows)
            parts = [self._maps(call, span) for span in spans]
            self.write(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _observe_row(self, call: AttentionCall, row: int) -> None:
        """Write one row's maps, of a layer that attends to each row by itself."""
        order = [n for span in self.rows for n in range(span.start, span.stop)]
        if row in order:
            call.prepare()
            with torch.no_grad():
                self.write(self._maps(call, slice(0, 1)), order.index(row))

    def _maps(self, call: AttentionCall, rows: slice) -> Tensor:
        """Return the kept maps of some rows, (rows, heads, tokens, queries)."""
        if self.of_text:
            return text_maps(call, rows, self.tokens)
        return call.maps(rows, self.tokens)

    def write(self, maps: Tensor, image: int | None = None) -> None:
        """Write (images, heads, tokens, queries), or (images x frames, ...), into the buffer.

        Args:
            maps: of all recorded images, or of one.
            image: which one.

        Raises:
            RuntimeError: the queries do not match the grid's cells.
        """
        if self.buffer is None:
            return
        first, last = (0, self.images) if image is None else (image, image + 1)
        if len(maps) < (last - first) * self.frames:
            maps = maps.unflatten(-1, (self.frames, -1)).movedim(-2, 1).flatten(0, 1)
        buffer = self.buffer[first * self.frames : last * self.frames].flatten(-2)
        if maps.shape[-1] != buffer.shape[-1]:
            raise RuntimeError(
                f"layer {self.name} has {maps.shape[-1]} queries, but a grid of "
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
