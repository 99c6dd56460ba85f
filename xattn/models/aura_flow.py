"""AuraFlow: registers and text in front of the image, UMT5's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, size_of
from xattn.models.noise import clean_of_flow

_REGISTERS = 8
"""Learned positions in front of the text; they are no words."""


@dataclass(frozen=True)
class AuraFlow(Joint):
    """The family of AuraFlow. Padding is zeros, and isn't masked."""

    classes: tuple[str, ...] = ("AuraFlowTransformer2DModel",)
    blocks: tuple[str, ...] = ("joint_transformer_blocks", "single_transformer_blocks")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, encoder_hidden_states, timestep)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        height, width = size_of(sample)
        patches = (height // _PATCH) * (width // _PATCH)
        return DenoiserCall(
            sample=sample,
            latent=(height, width),
            timestep=arguments["timestep"] * 1000,
            states=states,
            component=component,
            layout=Layout.text_first(int(states.shape[1]), patches, before=_REGISTERS),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return UMT5's positions."""
        return (Axis((pipe.tokenizer,)),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, its mask, negative, its mask)."""
        return Encoded(result[0], result[2])

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents that a velocity means."""
        return clean_of_flow(scheduler, sample, output, timestep)


_PATCH = 2
"""Latents along a patch's side."""
