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

    Every frame has a timestep of its own: the given one's is 0, and the others' the scheduler's.
    What the path gives isn't text.
    """

    classes: tuple[str, ...] = ("SanaWMTransformer3DModel",)
    roles: tuple[tuple[str, Role], ...] = (("cross_attn", "cross"),)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its text, (rows, 1, tokens, channels), and times, (rows, 1, frames)."""
        call = super().read(arguments, component)
        states = arguments["encoder_hidden_states"].squeeze(1)
        return replace(call, states=states, timestep=arguments["timestep"].amax((1, 2)))

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Gemma's positions behind the instruction."""
        return behind(given.get("chi_prompt"), Axis((pipe.tokenizer,)))

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, its mask, negative, its mask)."""
        return Encoded(result[0].squeeze(1), result[2].squeeze(1))
