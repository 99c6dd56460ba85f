"""Sana and Sana Sprint: Gemma's words in cross-attention; the image's own attention is linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xattn.models.family import CROSS_EDITS, NOTHING, Axis, DenoiserCall, Role
from xattn.models.separate import Separate, preprocessed
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class Sana(Separate):
    """The family of Sana (Xie et al. 2024).

    An instruction to Gemma stands before the prompt and not before negative ones; of its tokens
    the last two and the start token reach the denoiser. Linear attention has no softmax, so there
    are no maps of the image's attention to itself.
    """

    classes: tuple[str, ...] = ("SanaTransformer2DModel",)
    edits: frozenset[str] = CROSS_EDITS
    roles: tuple[tuple[str, Role], ...] = (("attn2", "cross"),)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, encoder_hidden_states, timestep, guidance)``.

        Sprint has an embedded guidance, and passes sin t / (sin t + cos t) for the timestep t.
        """
        call = super().read(arguments, component)
        passed = torch.as_tensor(call.timestep)
        if arguments.get("guidance") is not None:
            return replace(call, timestep=torch.atan2(passed, 1 - passed))
        scale = float(getattr(arguments["self"].config, "timestep_scale", 1.0))
        return call if scale == 1 else replace(call, timestep=passed / scale)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Gemma's positions behind the instruction."""
        plain = Axis((pipe.tokenizer,), convert=preprocessed(pipe, given))
        return behind(given.get("complex_human_instruction"), plain)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents that a velocity means.

        Raises:
            ValueError: Sprint's prediction is another one.
        """
        if scheduler.config.get("prediction_type") == "trigflow":
            raise ValueError(
                "previews=True can't be had with Sana Sprint's scheduler; leave it out"
            )
        return super().clean(scheduler, sample, output, timestep)


def behind(instruction: Sequence[str] | None, plain: Axis) -> tuple[Axis, ...]:
    """Return the axis of prompts behind an instruction, which negative ones don't have.

    Args:
        instruction: its lines.
        plain: the axis without it.
    """
    text = "\n".join(instruction or ())
    if not text:
        return (plain,)
    dropped = len(plain.tokenizers[0].encode(text)) - 2
    return (replace(plain, template=Template(text, "", dropped), negatives=plain),)
