"""PixArt alpha and Sigma: T5's words in cross-attention of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import CROSS_EDITS, NOTHING, Axis
from xattn.models.separate import Separate, preprocessed


@dataclass(frozen=True)
class PixArt(Separate):
    """The family of PixArt alpha (Chen et al. 2023) and Sigma (2024).

    Prompts are read in lower case, padding is masked.
    """

    classes: tuple[str, ...] = ("PixArtTransformer2DModel",)
    edits: frozenset[str] = CROSS_EDITS

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,), convert=preprocessed(pipe, given)),)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: the pipelines keep their guidance scale to themselves."""
        raise ValueError(
            "previews=True can't be had with PixArt, whose pipelines don't tell their guidance "
            "scale; leave it out"
        )
