"""Cosmos 3: text that reads itself, then video, sound and actions, which read everything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.chat import chat_template
from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import ImageAsks, Layout
from xattn.models.separate import layers_named


@dataclass(frozen=True)
class Cosmos3(ImageAsks):
    """The family of Cosmos 3 (NVIDIA 2026): images and videos, from text or given frames.

    The pipeline has no text encoder: the transformer embeds a chat's ids, and those are the states
    here. A layer attends twice: the text to itself, then all that is drawn to the text and itself.
    Sound stands behind the video. Guidance runs in two passes.
    """

    classes: tuple[str, ...] = ("Cosmos3OmniTransformer",)
    encoders: tuple[str, ...] = ("tokenize_prompt",)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the layers' attention, in whose second call the video asks."""
        config: Any = getattr(denoiser, "_orig_mod", denoiser).config
        patch, heads = int(config.latent_patch_size), int(config.num_attention_heads)
        found = layers_named(denoiser, component, {"self_attn": "joint"}, patch, "layers.")
        return tuple(replace(layer, heads=heads, nth=1, text_reads=False) for layer in found)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(input_ids, ..., vision_tokens, vision_timesteps)``."""
        frames, height, width = map(int, arguments["vision_token_shapes"][0])
        patch, text = int(arguments["self"].config.latent_patch_size), int(arguments["und_len"])
        own = slice(text, text + frames * height * width)
        return DenoiserCall(
            sample=arguments["vision_tokens"][0],
            latent=(height * patch, width * patch),
            timestep=arguments["vision_timesteps"][:1],
            states=arguments["input_ids"][None],
            component=component,
            layout=Layout(int(arguments["sequence_length"]), slice(0, text), own, own),
            frames=frames,
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the chat's positions; the size, and a video's duration, stand in the message."""
        from diffusers.pipelines.cosmos import pipeline_cosmos3_omni as pipeline

        still = given.get("num_frames") == 1
        facts = _facts(pipe, given, still)
        chat = [{"role": "user", "content": "{}" + facts}]
        system = given.get("use_system_prompt")
        if pipe.config.default_use_system_prompt if system is None else system:
            says = pipeline._SYSTEM_PROMPT_IMAGE if still else pipeline._SYSTEM_PROMPT_VIDEO
            chat.insert(0, {"role": "system", "content": says})

        def convert(text: str, tokenizer: Any) -> str:
            return text.rstrip(".") if facts else text

        how = {"add_generation_prompt": True, "add_vision_id": False}
        return (replace(chat_template(pipe.text_tokenizer, chat, **how), convert=convert),)

    def encoded(self, result: Any) -> Encoded:
        """Read (the prompt's ids, the negative prompt's)."""
        positive, negative = (torch.tensor([ids]) for ids in result)
        return Encoded(positive, negative)

    def as_encoded(self, given: dict[str, Any], result: Any) -> tuple[dict[str, Any], Any]:
        """Return both as they are.

        Raises:
            ValueError: the prompt was written into a caption of actions.
        """
        if given.get("action_mode") is not None:
            raise ValueError(
                "action= writes the prompt into a caption in JSON, in which xattn doesn't find "
                "its words; record Cosmos 3 without it"
            )
        return given, result


def _facts(pipe: Any, given: Mapping[str, Any], still: bool) -> str:
    """Return what the pipeline writes behind a prompt: a video's duration, and the size."""
    size = pipe.image_resolution_template if still else pipe.video_resolution_template
    found, fps = "", given.get("fps", 24.0)
    if given.get("add_duration_template") and not still:
        seconds = given["num_frames"] / fps
        found = f". {pipe.duration_template.format(duration=seconds, fps=fps)}"
    if given.get("add_resolution_template"):
        written = size.format(height=given["height"], width=given["width"])
        found = f"{found.rstrip('.')}. {written}"
    return found
