"""Allegro: T5's words in cross-attention of its own, over the frames of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.separate import Separate, preprocessed


@dataclass(frozen=True)
class Allegro(Separate):
    """The family of Allegro (Zhou et al. 2024). Prompts are cleaned, and padding is masked."""

    classes: tuple[str, ...] = ("AllegroTransformer3DModel",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its latents, (rows, channels, frames, height, width).

        The text has an axis more, (rows, 1, tokens, channels).
        """
        call = super().read(arguments, component)
        frames = int(call.sample.shape[2]) // int(arguments["self"].config.patch_size_t)
        assert call.states is not None
        return replace(call, frames=frames, states=call.states.flatten(0, -3))

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,), convert=preprocessed(pipe, given)),)
