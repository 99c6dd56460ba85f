"""Weights of text tokens in single heads: a factor on what a head takes from a token.

Attention is linear in its values, so a factor on a token's value in one head is a factor on that
head's probabilities for the token, not renormalised, as a word's weight in prompt-to-prompt is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler, ScoresCall


class Weighting(Handler):
    """Weigh text tokens in some heads of one layer, row by row.

    Attributes:
        factors: (rows, heads, tokens), 1 where nothing changes; None for a call left as it is.
    """

    edits = True

    def __init__(self) -> None:
        super().__init__()
        self.factors: Tensor | None = None

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call with its text values weighted.

        Raises:
            TypeError: the processor computes explicit probabilities, and applies them itself.
        """
        if self.factors is None:
            return call
        if isinstance(call, ScoresCall):
            raise TypeError(
                "weights of single heads need a fused attention call; call "
                "pipe.unet.set_default_attn_processor() first"
            )
        value = call.value * self._weights(call)
        return AttentionCall(
            call.query, call.key, value, call.mask, call.scale, call.own, call.locate
        )

    def _weights(self, call: AttentionCall) -> Tensor:
        """Return a factor for each value, (rows, heads, keys, 1)."""
        assert self.factors is not None
        rows, heads, keys = call.value.shape[:3]
        factors = self.factors.to(call.value)
        weights = call.value.new_ones(rows, heads, keys)
        places = call.places
        if places is None:
            weights[:, :, : factors.shape[2]] = factors
            return weights[..., None]
        for row, place in enumerate(places):
            text = torch.arange(keys, device=weights.device)[place.text]
            weights[row][:, text] = factors[row, :, : len(text)]
        return weights[..., None]
