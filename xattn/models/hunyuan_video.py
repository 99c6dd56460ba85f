"""HunyuanVideo: the frames of a video first, then Llama's words, in one attention."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, patched_call
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class HunyuanVideo(Joint):
    """The family of HunyuanVideo (Kong et al. 2024), text to video.

    Guidance is distilled, or runs in two passes. Words are Llama's, within a template whose first
    positions are cut off; CLIP's text reaches the model as one vector. Padding is masked.
    """

    classes: tuple[str, ...] = ("HunyuanVideoTransformer3DModel",)
    two_passes: bool = True

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer.

        Raises:
            TypeError: the pipeline puts an image's positions into the prompt.
        """
        if "ImageToVideo" in type(pipe).__name__ and "Skyreels" not in type(pipe).__name__:
            raise TypeError(
                f"{type(pipe).__name__} puts an image's positions into the prompt, and where words "
                "stand then isn't known; record HunyuanVideoPipeline"
            )
        return (pipe.transformer,)

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
        """Return Llama's positions behind the template's dropped ones."""
        template = given["prompt_template"] if "prompt_template" in given else _template_of(pipe)
        before, _, after = template["template"].partition("{}")
        dropped = template.get("crop_start")
        if dropped is None:  # as the pipeline counts it: all but {} and the mark behind
            dropped = len(pipe.tokenizer(template["template"]).input_ids) - 2
        return (Axis((pipe.tokenizer,), template=Template(before, after, int(dropped))),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, pooled, mask); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)


def _template_of(pipe: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (
        inspect.signature(pipe.encode_prompt).parameters["prompt_template"].default
    )
    return found
