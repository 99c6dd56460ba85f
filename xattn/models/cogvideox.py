"""CogVideoX: text first, then the frames of a video, in one attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.joint import Joint, patched_call


@dataclass(frozen=True)
class CogVideoX(Joint):
    """The family of CogVideoX and 1.5 (Yang et al. 2024), and of ConsisID. Padding isn't masked.

    Latents are (rows, frames, channels, height, width); in 1.5 two frames make one of the maps'.
    ConsisID reads a face between its blocks, by layers of their own.
    """

    classes: tuple[str, ...] = ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
    blocks: tuple[str, ...] = ("transformer_blocks",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, encoder_hidden_states, timestep, ...)``."""
        config = arguments["self"].config
        frames = int(arguments["hidden_states"].shape[1]) // int(config.get("patch_size_t") or 1)
        states = arguments["encoder_hidden_states"]
        return patched_call(arguments, component, states, int(config.patch_size), frames=frames)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,)),)
