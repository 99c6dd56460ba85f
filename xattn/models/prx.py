"""PRX: the image attends to the text and to itself in one call, and the text to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import ImageAsks, patched_call
from xattn.models.noise import clean_of_either
from xattn.models.separate import layers_named


@dataclass(frozen=True)
class PRX(ImageAsks):
    """The family of PRX (Photoroom 2025): keys are [text, image], padding is masked."""

    classes: tuple[str, ...] = ("PRXTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention, in which the image attends to both."""
        found = layers_named(denoiser, component, {"attention": "joint"})
        return tuple(replace(layer, text_reads=False) for layer in found)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; its timestep is a thousandth of the scheduler's.

        Raises:
            RuntimeError: several images are drawn with guidance, which the pipeline can't.
        """
        times, rows = len(arguments["timestep"]), len(arguments["hidden_states"])
        if times not in (1, rows):
            raise RuntimeError(
                f"PRXPipeline passes {times} timesteps for {rows} rows: with guidance it draws one "
                "image at a time; draw one, or pass guidance_scale=1.0"
            )
        states, patch = arguments["encoder_hidden_states"], arguments["self"].config.patch_size
        call = patched_call(arguments, component, states, int(patch))
        return replace(call, timestep=call.timestep * 1000)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the tokenizer's positions."""
        how = "basic_clean" if given.get("skip_text_cleaning") else "clean_text"
        clean = getattr(pipe.text_preprocessor, how)

        def convert(text: str, tokenizer: Any) -> str:
            changed: str = clean(text)
            return changed

        return (Axis((pipe.tokenizer,), convert=convert),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, its mask, negative, its mask)."""
        return Encoded(result[0], result[2])

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents implied by a predicted noise or velocity."""
        return clean_of_either(scheduler, sample, output, timestep)
