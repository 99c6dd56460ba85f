"""HunyuanVideo: the frames of a video first, then Llama's words, in one attention."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, patched_call
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class HunyuanVideo(Joint):
    """The family of HunyuanVideo (Kong et al. 2024), from text and from an image.

    Guidance is distilled, or runs in two passes. Words are Llama's, within a template whose first
    positions are cut off; CLIP's text reaches the model as one vector. What Llava reads of a given
    image stands in front of the words. Padding is masked.
    """

    classes: tuple[str, ...] = ("HunyuanVideoTransformer3DModel",)
    two_passes: bool = True

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, timestep, encoder_hidden_states, ...)``."""
        config = arguments["self"].config
        frames = int(arguments["hidden_states"].shape[2]) // int(config.patch_size_t)
        return patched_call(
            arguments, component, arguments["encoder_hidden_states"], int(config.patch_size),
            lay=Layout.image_first, frames=frames,
        )  # fmt: skip

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Llama's positions behind the template's dropped ones, and an image's in front."""
        template = given["prompt_template"] if "prompt_template" in given else _template_of(pipe)
        before, _, after = template["template"].partition("{}")
        dropped = template.get("crop_start")
        if dropped is None:  # as the pipeline counts it: all but {} and the mark behind
            dropped = len(pipe.tokenizer(template["template"]).input_ids) - 2
        dropped -= _seen(template, given)
        return (Axis((pipe.tokenizer,), template=Template(before, after, int(dropped))),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, pooled, mask); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)


def _template_of(pipe: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (
        inspect.signature(pipe.encode_prompt).parameters["prompt_template"].default
    )
    return found


def _seen(template: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """Return how many positions a given image has: every so many of those that Llava reads.

    Raises:
        ValueError: where the template is cut isn't said.
    """
    every = given.get("image_embed_interleave")
    if every is None:
        return 0
    if template.get("crop_start") is None:
        raise ValueError(
            "prompt_template= has no crop_start, without which xattn doesn't know where words "
            "stand behind an image: pass how many of the template's positions are cut off"
        )
    seen = int(template.get("image_emb_len", 576))
    return math.ceil(seen / every) if 0 < every < 6 else seen
