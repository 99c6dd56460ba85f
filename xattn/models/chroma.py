"""Chroma: FLUX.1's blocks with T5's padding masked, guidance in two passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xattn.models.family import Encoded
from xattn.models.flux import Flux


@dataclass(frozen=True)
class Chroma(Flux):
    """The family of Chroma. Words are T5's; all padding but its first position is masked."""

    classes: tuple[str, ...] = ("ChromaTransformer2DModel",)
    two_passes: bool = False  # one encode_prompt encodes both prompts

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, ids, its mask, negative, ...)."""
        return Encoded(result[0], result[3])
