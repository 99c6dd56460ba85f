"""JoyImage Edit and Edit Plus: the drawn image, given pictures, then text in one attention."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, given_texts, patched_call
from xattn.models.separate import layers_named
from xattn.text.tokenize import Template

_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_USER = re.compile(r"<\|im_start\|>user\n((?:<image>\n)*)(.*)<\|im_end\|>\n", re.DOTALL)


@dataclass(frozen=True)
class JoyImageEdit(Joint):
    """The family of JoyImage Edit (2026): from text alone, or with a picture.

    A picture's marks stand in front of the prompt, where the text encoder reads them, and its
    latents behind those that are drawn. Guidance runs in two passes; padding isn't masked.
    """

    classes: tuple[str, ...] = ("JoyImageEditTransformer3DModel",)
    edits: frozenset[str] = JOINT_EDITS - {"blend"}  # latents have pictures' in front of them
    two_passes: bool = True
    encoders: tuple[str, ...] = ("encode_prompt", "encode_prompt_multiple_images")

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention: all joint."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        patch = int(model.config.patch_size[1])
        return layers_named(model, component, {"attn": "joint"}, patch, "double_blocks.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, timestep, encoder_hidden_states)``."""
        items = int(arguments["hidden_states"].shape[1])
        patch = int(arguments["self"].config.patch_size[1])

        def lay(text: int, own: int) -> Layout:
            return Layout.image_first(text, own, own * items)

        return patched_call(
            arguments, component, arguments["encoder_hidden_states"], patch, lay=lay
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the positions behind the system's message."""
        if given.get("images") is not None:
            return pictured(pipe, states, given, 1)
        before, _, after = pipe.prompt_template_encode["image"].partition("{}")
        dropped = int(pipe.prompt_template_encode_start_idx["image"])
        return (Axis((pipe.tokenizer,), template=Template(before, after, dropped)),)

    def shared(self, pipe: Any) -> tuple[Any, str, Callable[..., Any]]:
        """Return ``encode`` with one sample for all rows: the pipeline passes no generator."""
        encode = pipe.vae.encode

        def once(pictures: Tensor, *args: Any, **given: Any) -> Any:
            alike = torch.equal(pictures, pictures[:1].expand_as(pictures))
            if len(pictures) == 1 or not alike:
                return encode(pictures, *args, **given)
            drawn = encode(pictures[:1], *args, **given).latent_dist

            def sample(*args: Any, **given: Any) -> Tensor:
                latents: Tensor = drawn.sample(*args, **given)
                return latents.expand(len(pictures), *latents.shape[1:])

            return SimpleNamespace(latent_dist=SimpleNamespace(sample=sample))

        return pipe.vae, "encode", once

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)

    def as_encoded(self, given: dict[str, Any], result: Any) -> tuple[dict[str, Any], Any]:
        """Return both as they are."""
        return given, result


@dataclass(frozen=True)
class JoyImageEditPlus(JoyImageEdit):
    """The family of JoyImage Edit Plus: several pictures, each of its own size.

    Guidance is one batch, filled up to the longer of prompts and negative prompts. Padding of
    texts and of pictures is masked.
    """

    classes: tuple[str, ...] = ("JoyImageEditPlusTransformer3DModel",)
    encoders: tuple[str, ...] = ("encode_prompt_multiple_images",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, timestep, ..., shape_list)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        _, height, width = arguments["shape_list"][0][0]
        patch = int(arguments["self"].config.patch_size[1])
        return DenoiserCall(
            sample=sample,
            latent=(int(height) * patch, int(width) * patch),
            timestep=arguments["timestep"],
            states=states,
            component=component,
            layout=Layout.image_first(
                int(states.shape[1]), int(height) * int(width), int(sample.shape[1])
            ),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the positions behind the system's message."""
        return pictured(pipe, states, given, int(given.get("count", 0)))

    def as_encoded(self, given: dict[str, Any], result: Any) -> tuple[dict[str, Any], Any]:
        """Return the prompts without the chat that the pipeline wrote around them.

        Raises:
            ValueError: prompts have different numbers of pictures.
        """
        found = [_USER.fullmatch(text) for text in given_texts(given)]
        counts = {match[1].count("<image>") for match in found if match is not None}
        if None in found or len(counts) > 1:
            raise ValueError(
                "xattn finds words of JoyImage Edit Plus behind one number of pictures, the same "
                f"for each prompt, and not of {given['prompt']!r}; draw them one by one"
            )
        texts = [match[2] for match in found if match is not None]
        return {**given, "prompt": texts, "count": max(counts, default=0)}, result


def pictured(
    pipe: Any, states: Tensor | None, given: Mapping[str, Any], count: int
) -> tuple[Axis, ...]:
    """Return the axis of prompts behind ``count`` pictures.

    The processor makes more positions of a picture's mark, and the system's message is cut off:
    what both come to the embeddings' length tells, of the longest prompt.
    """
    tokenizer = pipe.processor.tokenizer
    before, _, after = pipe.prompt_template_encode["multiple_images"].partition("{}")
    before, after = f"{before}<|im_start|>user\n{_PICTURE * count}", f"<|im_end|>\n{after}"
    dropped = int(pipe.prompt_template_encode_start_idx["multiple_images"])
    texts = given_texts(given)
    if states is not None and texts:
        longest = max(len(tokenizer(before + text + after).input_ids) for text in texts)
        dropped = longest - int(states.shape[1])
    left = getattr(tokenizer, "padding_side", "right") == "left"
    return (Axis((tokenizer,), template=Template(before, after, dropped, left)),)
