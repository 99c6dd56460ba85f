"""Hunyuan-DiT: BERT's words, and behind them T5's, in cross-attention of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xattn.models.family import CROSS_EDITS, NOTHING, Axis, DenoiserCall, Encoded
from xattn.models.separate import Separate


@dataclass(frozen=True)
class HunyuanDiT(Separate):
    """The family of Hunyuan-DiT (Li et al. 2024).

    The model joins the embeddings of both encoders, each from an ``encode_prompt`` of its own: a
    word stands at two places. Padding is replaced by learned vectors, and attended to.
    """

    classes: tuple[str, ...] = ("HunyuanDiT2DModel",)
    edits: frozenset[str] = CROSS_EDITS

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its T5 text, which is encoded last."""
        return replace(
            super().read(arguments, component), states=arguments["encoder_hidden_states_t5"]
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return BERT's positions, then T5's."""
        config = pipe.transformer.config
        bert, t5 = int(config.text_len), int(config.text_len_t5)
        return (
            Axis((pipe.tokenizer,), length=bert),
            Axis((pipe.tokenizer_2,), length=t5, offset=bert),
        )

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, masks) of one encoder."""
        return Encoded(result[0], result[1])
