"""A layer's maps with gradients, kept for as long as someone may go back along them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.probabilities import Tokens


class Live(Handler):
    """Keep one layer's maps of some tokens, with gradients; leave its output unchanged.

    Attributes:
        name: the layer's name.
        rows: the rows of the batch to keep, as slices.
        tokens: the kept positions, as a slice if they are consecutive.
        maps: (images, tokens, queries), float32 or more, the mean over heads; None before a call.
        after: called each time maps were kept; it may end the pass by an exception.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.rows: tuple[slice, ...] = ()
        self.tokens: Tokens = slice(None)
        self.maps: Tensor | None = None
        self.after: Callable[[], None] | None = None

    def observe(self, call: AttentionCall) -> None:
        """Keep the maps of the wanted rows.

        Gradient checkpointing computes a layer again on the way back: the same operations, whose
        results nobody needs.
        """
        call.prepare()
        parts = [call.maps(span, self.tokens).mean(1) for span in self.rows]
        if not self.seen:
            self.maps = parts[0] if len(parts) == 1 else torch.cat(parts)
            if self.after is not None:
                self.after()
