"""Bria 3.2: FLUX.1's blocks, T5's words, both prompts in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xattn.models.family import Encoded
from xattn.models.flux import Flux


@dataclass(frozen=True)
class Bria(Flux):
    """The family of Bria. Words are T5's; padding is zeros, and isn't masked."""

    classes: tuple[str, ...] = ("BriaTransformer2DModel",)
    two_passes: bool = False
    scale: float = 1.0

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, ids)."""
        return Encoded(result[0], result[1])
