"""Kandinsky 6: Kandinsky 5's layers beside those of a sound, whose attention isn't recorded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Layout
from xattn.models.kandinsky5 import Kandinsky5
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class Kandinsky6(Kandinsky5):
    """The family of Kandinsky 6 (2026). Padding is masked.

    A given picture is a frame behind those that are drawn. Guidance runs in two passes; one
    ``encode_prompt`` encodes both prompts.
    """

    classes: tuple[str, ...] = ("Kandinsky6Transformer3DModel",)
    edits: frozenset[str] = frozenset()
    two_passes: bool = False

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the video's attention layers."""
        found = super().layers(denoiser, component)
        return tuple(layer for layer in found if ".video_dec_block." in layer.name)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, encoder_hidden_states, timestep, ...)``."""
        call = super().read(arguments, component)
        if arguments.get("visual_token_type_ids") is None:
            return call
        patch = int(arguments["self"].config.patch_size[1])
        frames, area = call.frames - 1, (call.latent[0] // patch) * (call.latent[1] // patch)
        own, nowhere = slice(0, frames * area), slice(0, 0)
        layout = Layout(call.frames * area, nowhere, own, nowhere)
        return replace(call, frames=frames, layout=layout)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Qwen's positions behind the template's dropped ones."""
        module: Any = sys.modules[type(pipe).__module__]
        before, _, after = module._PROMPT_TEMPLATE.partition("{}")
        tokenizer = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)  # a processor has one
        left = getattr(tokenizer, "padding_side", "right") == "left"
        template = Template(before, after, int(module._QWEN_CROP_START), left)
        return (Axis((tokenizer,), template=template),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, pooled, mask, negative, ...)."""
        return Encoded(result[0], result[3])
