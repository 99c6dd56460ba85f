"""ERNIE-Image: the image first, then the text, filled up to the longest of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, patched_call
from xattn.models.noise import clean_of_flow
from xattn.models.ragged import padded
from xattn.models.separate import layers_named


@dataclass(frozen=True)
class ErnieImage(Joint):
    """The family of ERNIE-Image (Baidu 2026). What fills a text up is masked.

    Prompts and negative prompts are encoded one by one, and stand in one batch, of the longest's
    length: it can be longer than the prompts'. Where the pipeline rewrites prompts (``use_pe``),
    words are those of the new text.
    """

    classes: tuple[str, ...] = ("ErnieImageTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = True

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the blocks: all joint."""
        return layers_named(denoiser, component, {"self_attention": "joint"})

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, timestep, text_bth, text_lens)``."""
        patch = int(arguments["self"].config.patch_size)
        return patched_call(
            arguments, component, arguments["text_bth"], patch, lay=Layout.image_first
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the tokenizer's positions."""
        return (Axis((pipe.tokenizer,)),)

    def encoded(self, result: Any) -> Encoded:
        """Read a list of texts; negative prompts are encoded by a call of their own."""
        return Encoded(padded(result), None)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents that a velocity means."""
        return clean_of_flow(scheduler, sample, output, timestep)
