"""Bria FIBO: FLUX.1's blocks on latents that aren't packed, words of SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from xattn.models.bria import Bria
from xattn.models.family import JOINT_EDITS, AttentionLayer, DenoiserCall


@dataclass(frozen=True)
class BriaFibo(Bria):
    """The family of Bria FIBO (2025), with both prompts in one batch.

    Half of the text's channels are another state of the encoder in each block; its positions are
    the same. Padding is masked. A position holds one latent, or four with ``do_patching``, whose
    maps then have the grid of positions.
    """

    classes: tuple[str, ...] = ("BriaFiboTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS - {"blend"}  # its latents' packing isn't known

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the double blocks, then of the single ones: all joint."""
        return tuple(replace(layer, patch=1) for layer in super().layers(denoiser, component))

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; the grid is known by the image's ids."""
        call = super().read(arguments, component)
        return replace(call, latent=(call.latent[0] // 2, call.latent[1] // 2))
