"""SANA-WM: Sana's words in cross-attention, over a video that follows a camera."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall, Encoded, Role
from xattn.models.sana import behind
from xattn.models.sana_video import SanaVideo


@dataclass(frozen=True)
class SanaWM(SanaVideo):
    """The family of SANA-WM (2026): a given frame, words, and a camera's path.

    What the path gives isn't text.
    """

    classes: tuple[str, ...] = ("SanaWMTransformer3DModel",)
    roles: tuple[tuple[str, Role], ...] = (("cross_attn", "cross"),)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its text, (rows, 1, tokens, channels)."""
        call = super().read(arguments, component)
        return replace(call, states=arguments["encoder_hidden_states"].squeeze(1))

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Gemma's positions behind the instruction."""
        return behind(given.get("chi_prompt"), Axis((pipe.tokenizer,)))

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, its mask, negative, its mask)."""
        return Encoded(result[0].squeeze(1), result[2].squeeze(1))
