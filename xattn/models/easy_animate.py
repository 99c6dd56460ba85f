"""EasyAnimate: a chat's text first, then the frames of a video, in one attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xattn.models.chat import chat_template
from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.joint import Joint, patched_call


@dataclass(frozen=True)
class EasyAnimate(Joint):
    """The family of EasyAnimate 5.1 (Xu et al. 2024): from text, with control, with inpainting.

    Words are Qwen2-VL's, in a chat whose positions are all on the axis; padding isn't masked.
    """

    classes: tuple[str, ...] = ("EasyAnimateTransformer3DModel",)
    blocks: tuple[str, ...] = ("transformer_blocks",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, timestep, encoder_hidden_states=...)``."""
        frames = int(arguments["hidden_states"].shape[2])
        states, patch = arguments["encoder_hidden_states"], int(arguments["self"].config.patch_size)
        return patched_call(arguments, component, states, patch, frames=frames)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the chat's positions; the pipeline pads them on the right."""
        chat = [{"role": "user", "content": [{"type": "text", "text": "{}"}]}]
        axis = chat_template(pipe.tokenizer, chat, marks=True, add_generation_prompt=True)
        return (replace(axis, template=replace(axis.template, left=False)),)
