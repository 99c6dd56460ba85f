"""Nucleus-Image: the image attends to itself and to the text in one call, the text to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.chat import chat_template
from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import ImageAsks, Layout
from xattn.models.separate import layers_named

_PATCH = 2
"""Latents are packed 2 x 2 into one position before the call."""


@dataclass(frozen=True)
class Nucleus(ImageAsks):
    """The family of Nucleus-Image (2026): keys are [image, text], padding is masked.

    Words are Qwen3-VL's, in a chat whose positions are all on the axis. Guidance runs in two
    passes.
    """

    classes: tuple[str, ...] = ("NucleusMoEImageTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = True

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention, in which the image attends to both."""
        found = layers_named(denoiser, component, {"attn": "joint"}, _PATCH, "transformer_blocks.")
        return tuple(replace(layer, text_reads=False) for layer in found)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., timestep, img_shapes)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        shapes = arguments["img_shapes"]
        _, height, width = shapes[0] if isinstance(shapes, list) else shapes
        return DenoiserCall(
            sample=sample,
            latent=(int(height) * _PATCH, int(width) * _PATCH),
            timestep=arguments["timestep"] * 1000,
            states=states,
            component=component,
            layout=Layout.image_first(int(states.shape[1]), int(sample.shape[1])),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the chat's positions, the system message's among them."""
        from diffusers.pipelines.nucleusmoe_image import pipeline_nucleusmoe_image as pipeline

        chat = [
            {"role": "system", "content": pipeline.DEFAULT_SYSTEM_PROMPT},
            {"role": "user", "content": [{"type": "text", "text": "{}"}]},
        ]
        how = {"marks": True, "add_generation_prompt": True}
        return (chat_template(pipe.processor, chat, **how),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)
