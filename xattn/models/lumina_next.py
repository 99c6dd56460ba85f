"""Lumina-Next: Gemma's words in gated cross-attention, guidance behind the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xattn.models.family import CROSS_EDITS, NOTHING, Axis, DenoiserCall
from xattn.models.separate import Separate, preprocessed


@dataclass(frozen=True)
class LuminaNext(Separate):
    """The family of Lumina-Next (Zhuo et al. 2024)."""

    classes: tuple[str, ...] = ("LuminaNextDiT2DModel",)
    edits: frozenset[str] = CROSS_EDITS

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; its time runs from 0, noise, to 1."""
        call = super().read(arguments, component)
        return replace(call, timestep=(1 - call.timestep) * 1000)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Gemma's positions; negative prompts are read as they are written."""
        plain = Axis((pipe.tokenizer,))
        return (replace(plain, convert=preprocessed(pipe, given), negatives=plain),)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: guidance acts on three of the channels."""
        raise ValueError(
            "previews=True can't be had with Lumina-Next, whose guidance acts on some of the "
            "latents' channels; leave it out"
        )
