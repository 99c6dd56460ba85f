"""Latte: T5's words in cross-attention of its own, with the frames of a video as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Role
from xattn.models.separate import Separate, layers_named, preprocessed


@dataclass(frozen=True)
class Latte(Separate):
    """The family of Latte (Ma et al. 2024).

    Blocks of space, which read the text, have a row for each frame; those of time read none. The
    embeddings end with the prompt.
    """

    classes: tuple[str, ...] = ("LatteTransformer3DModel",)
    roles: tuple[tuple[str, Role], ...] = (("attn2", "cross"),)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the layers that read the text."""
        return layers_named(denoiser, component, dict(self.roles), within="transformer_blocks.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its latents, (rows, channels, frames, height, width)."""
        call = super().read(arguments, component)
        return replace(call, frames=int(call.sample.shape[2]))

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,), convert=preprocessed(pipe, given)),)
