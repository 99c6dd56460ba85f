"""Kandinsky 5: Qwen's words in cross-attention of its own; guidance runs in two passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import (
    CROSS_EDITS,
    NOTHING,
    AttentionLayer,
    Axis,
    DenoiserCall,
    Encoded,
    Role,
)
from xattn.models.separate import Separate, layers_named
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class Kandinsky5(Separate):
    """The family of Kandinsky 5's models of images and videos (2025).

    Latents are (rows, frames, height, width, channels). The first blocks refine the text alone:
    they are not among the layers.
    """

    classes: tuple[str, ...] = ("Kandinsky5Transformer3DModel",)
    edits: frozenset[str] = CROSS_EDITS - {"blend"}  # latents have their channels last
    two_passes: bool = True
    roles: tuple[tuple[str, Role], ...] = (("self_attention", "self"), ("cross_attention", "cross"))

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention layers of the visual blocks."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        patch = int(model.config.patch_size[1])
        return layers_named(model, component, dict(self.roles), patch, "visual_transformer_blocks.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, encoder_hidden_states, timestep)``."""
        call = super().read(arguments, component)
        _, frames, height, width, _ = call.sample.shape
        patch = int(arguments["self"].config.patch_size[0])
        return replace(call, latent=(int(height), int(width)), frames=int(frames) // patch)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Qwen's positions behind the template's dropped ones."""
        from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import prompt_clean

        def convert(text: str, tokenizer: Any) -> str:
            changed: str = prompt_clean(text)
            return changed

        before, _, after = pipe.prompt_template.partition("{}")
        template = Template(before, after, int(pipe.prompt_template_encode_start_idx))
        tokenizer = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)  # a processor has one
        return (Axis((tokenizer,), convert=convert, template=template),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, pooled, lengths); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: guidance runs in two passes."""
        raise ValueError(
            "previews=True can't be had with Kandinsky 5, whose guidance runs in two passes; leave "
            "it out"
        )
