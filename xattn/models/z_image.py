"""Z-Image: each row is its image and its text, both filled up to multiples of 32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.ragged import Ragged, padded
from xattn.models.separate import Separate, layers_named
from xattn.processors.call import Place
from xattn.text.tokenize import chat_template

_MULTIPLE = 32
_LENGTH = 512


@dataclass(frozen=True)
class ZImage(Separate):
    """The family of Z-Image (Alibaba 2025) and Z-Image Turbo.

    Prompts are messages of a chat with Qwen3. Rows of guidance stand behind the prompts'. What
    fills up text and image is learned, and attended to.
    """

    classes: tuple[str, ...] = ("ZImageTransformer2DModel",)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the joint blocks."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        (patch, *_) = model.all_patch_size
        return layers_named(model, component, {"attention": "joint"}, int(patch), "layers.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(x, t, cap_feats)`` of lists, an entry for each row.

        Raises:
            RuntimeError: the call has reference images (Omni).
        """
        images, texts = arguments["x"], arguments["cap_feats"]
        if isinstance(images[0], list):
            raise RuntimeError("Z-Image Omni's reference images can't be recorded yet")
        sample = torch.stack(list(images)).squeeze(2)
        latent = (int(sample.shape[-2]), int(sample.shape[-1]))
        patch = int(arguments.get("patch_size") or 2)
        image = _filled((latent[0] // patch) * (latent[1] // patch))
        lengths = [len(text) for text in texts]
        layout = Ragged(image + _filled(max(lengths)), tuple((image, n, 0) for n in lengths))
        return DenoiserCall(
            sample=sample,
            latent=latent,
            timestep=1000 - arguments["t"] * 1000,
            states=padded(texts, _LENGTH),
            component=component,
            layout=layout,
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where each row's image and its text stand."""
        layout: Ragged = call.layout
        return layout.places(layer, self.grid(layer, call.latent), queries, keys)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Qwen3's positions, the template's among them."""
        template = chat_template(pipe.tokenizer, add_generation_prompt=True, enable_thinking=True)
        return (Axis((pipe.tokenizer,), given.get("max_sequence_length"), template=template),)

    def encoded(self, result: Any) -> Encoded:
        """Read lists of positive and of negative texts, an entry for each prompt."""
        positive, negative = result
        padded_negative = padded(negative, _LENGTH) if negative else None
        return Encoded(padded(positive, _LENGTH), padded_negative, repeats=True)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: guidance counts from the prompts, and is normalized."""
        raise ValueError(
            "previews=True can't be had with Z-Image, whose guidance isn't the usual one; leave it "
            "out"
        )


def _filled(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE
