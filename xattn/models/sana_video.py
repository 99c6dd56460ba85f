"""SANA-Video: Sana's words in cross-attention, over the frames of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.models.sana import Sana
from xattn.models.separate import drawn_time, layers_named


@dataclass(frozen=True)
class SanaVideo(Sana):
    """The family of SANA-Video (2025), which reads prompts as Sana does.

    Where a frame is given, every frame has a timestep of its own: the given one's is 0, and the
    others' the scheduler's.
    """

    classes: tuple[str, ...] = ("SanaVideoTransformer3DModel",)
    edits: frozenset[str] = frozenset()

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the layers that read the text."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        patch = int(model.config.patch_size[1])
        return layers_named(model, component, dict(self.roles), patch)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its latents, (rows, channels, frames, height, width)."""
        call = super().read(arguments, component)
        patch = int(arguments["self"].config.patch_size[0])
        frames = int(call.sample.shape[2]) // patch
        return replace(call, frames=frames, timestep=drawn_time(call.timestep))
