"""CogView3+ and CogView4: text first; GLM pads its prompts on the left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import JOINT_EDITS, NOTHING, Axis, DenoiserCall
from xattn.models.joint import Joint, given_texts, patched_call
from xattn.models.noise import clean_latents
from xattn.text.tokenize import Template

_PATCH = 2
"""Latents along a patch's side, in all published models."""


@dataclass(frozen=True)
class CogView3(Joint):
    """The family of CogView3+ (Zheng et al. 2024). Words are T5's; padding isn't masked."""

    classes: tuple[str, ...] = ("CogView3PlusTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    blocks: tuple[str, ...] = ("transformer_blocks",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, encoder_hidden_states, timestep, ...)``."""
        return patched_call(arguments, component, arguments["encoder_hidden_states"], _PATCH)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,)),)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents implied by a predicted velocity or noise."""
        return clean_latents(scheduler, sample, output, timestep)


@dataclass(frozen=True)
class CogView4(CogView3):
    """The family of CogView4: guidance in two passes, whose texts can be of different lengths.

    Words are GLM's. Prompts are padded on the left, to a multiple of 16 positions.
    """

    classes: tuple[str, ...] = ("CogView4Transformer2DModel",)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return GLM's positions, behind the padding."""
        left = getattr(pipe.tokenizer, "padding_side", "left") == "left"
        texts = given_texts(given)
        if left or states is None or not texts:
            return (Axis((pipe.tokenizer,), template=Template(left=True)),)
        longest = max(len(pipe.tokenizer(text).input_ids) for text in texts)
        return (Axis((pipe.tokenizer,), template=Template(dropped=longest - states.shape[1])),)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: a pass does not hold the guided velocity."""
        return Joint.clean(self, scheduler, sample, output, timestep)
