"""Qwen-Image and Qwen-Image-Edit: a chat template's text first, packed latents, two passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor

from xattn.models.family import JOINT_EDITS, NOTHING, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, given_texts
from xattn.text.tokenize import Template

_PATCH = 2
"""Latents are packed 2 x 2 into one position before the call."""


@dataclass(frozen=True)
class QwenImage(Joint):
    """The family of Qwen-Image (Wu et al. 2025): text-to-image, img2img, inpainting, Edit.

    The prompt stands in a chat template, whose first tokens are cut off. An edited image comes
    twice: as tokens of the vision encoder in front of the prompt's, and as latents behind those
    that are drawn; neither is a word's or the grid's.
    """

    classes: tuple[str, ...] = ("QwenImageTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = True
    blocks: tuple[str, ...] = ("transformer_blocks",)
    patch: int | None = _PATCH

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., timestep, img_shapes)``.

        Raises:
            RuntimeError: several layers of an image are drawn at once.
        """
        if arguments.get("additional_t_cond") is not None:
            raise RuntimeError(
                "QwenImageLayeredPipeline draws several images as layers of one, and their maps "
                "aren't known apart; record another Qwen-Image pipeline"
            )
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        shapes = arguments["img_shapes"][0]
        own = shapes[0] if isinstance(shapes[0], tuple | list) else shapes
        height, width = int(own[1]), int(own[2])
        return DenoiserCall(
            sample=sample,
            latent=(height * _PATCH, width * _PATCH),
            timestep=arguments["timestep"] * 1000,
            states=states,
            component=component,
            layout=Layout.text_first(int(states.shape[1]), height * width, int(sample.shape[1])),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the tokenizer's positions behind the template's dropped ones.

        In an edit the template's one image token becomes as many as the image has; how many more
        they are the embeddings' length tells, of the longest prompt.
        """
        before, _, after = pipe.prompt_template_encode.partition("{}")
        dropped = int(pipe.prompt_template_encode_start_idx)
        image = given.get("image")
        if image is not None:
            if "image_pad" not in before:  # the later Edit numbers its images
                count = len(image) if isinstance(image, list) else 1
                before += "".join(
                    f"Picture {n + 1}: <|vision_start|><|image_pad|><|vision_end|>"
                    for n in range(count)
                )
            texts = given_texts(given)
            if states is not None and texts:
                lengths = [len(pipe.tokenizer(before + t + after).input_ids) for t in texts]
                dropped -= int(states.shape[1]) + dropped - max(lengths)
        template = Template(before, after, dropped)
        return (Axis((pipe.tokenizer,), template=template),)

    def shared(self, pipe: Any) -> tuple[Any, str, Callable[..., Any]]:
        """Return what reads prompts, with one given picture in each: Edit hands over one in all.

        Raises:
            ValueError: the pipeline takes one prompt at a time.
        """
        if type(pipe).__name__.endswith("EditPlusPipeline"):
            raise ValueError(
                f"{type(pipe).__name__} draws one prompt at a time, and an edit draws source and "
                "siblings together: use QwenImageEditPipeline, with weights made for it"
            )
        read = pipe._get_qwen_prompt_embeds

        def each(prompt: str | list[str], image: Any = None, *args: Any, **given: Any) -> Any:
            one = image[0] if isinstance(image, list) and len(image) == 1 else image
            if isinstance(one, Image) and not isinstance(prompt, str):
                image = [one] * len(prompt)
            return read(prompt, image, *args, **given)

        return pipe, "_get_qwen_prompt_embeds", each

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)
