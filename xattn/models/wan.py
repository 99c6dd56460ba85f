"""Wan 2.1 and 2.2: UMT5's words in cross-attention of its own, over the frames of a video."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.separate import Separate, drawn_time, layers_named


@dataclass(frozen=True)
class Wan(Separate):
    """The family of Wan (Wan Team 2025), and of what is built alike.

    Guidance runs in two passes; one ``encode_prompt`` encodes both prompts. Wan 2.2 has two
    denoisers, for high noise and for low: they take turns in one run, and their layers of one name
    fill the same maps. Where an image is given, a layer reads it first, and then the text. Padding
    is zeros, and isn't masked.
    """

    classes: tuple[str, ...] = (
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "ChronoEditTransformer3DModel",
    )

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer of high noise, then that of low noise, where there are both."""
        found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2"))
        return tuple(model for model in found if model is not None)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention layers of the blocks; those that read a control video are not."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        patch, roles = int(model.config.patch_size[1]), dict(self.roles)
        return tuple(
            replace(layer, nth=1) if layer.reads_text and _reads_image(layer.module) else layer
            for layer in layers_named(model, component, roles, patch, "blocks.")
        )

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; a given first frame's timestep is 0, and the others' is the scheduler's."""
        call = super().read(arguments, component)
        return replace(
            call,
            frames=int(call.sample.shape[2]) // int(arguments["self"].config.patch_size[0]),
            timestep=drawn_time(call.timestep),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return UMT5's positions; the pipeline cleans its prompts."""
        clean = sys.modules[type(pipe).__module__].prompt_clean

        def convert(text: str, tokenizer: Any) -> str:
            changed: str = clean(text)
            return changed

        return (Axis((pipe.tokenizer,), convert=convert),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative)."""
        return Encoded(result[0], result[1])

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: guidance runs in two passes."""
        raise ValueError(
            "previews=True can't be had with Wan, whose guidance runs in two passes; leave it out"
        )


@dataclass(frozen=True)
class WanAnimate(Wan):
    """The family of Wan Animate: a video in segments, each a run; a reference is its frame 0.

    What the face gives in layers between the blocks isn't text.
    """

    classes: tuple[str, ...] = ("WanAnimateTransformer3DModel",)
    segment: str = "segment"


def _reads_image(module: Any) -> bool:
    return getattr(module, "add_k_proj", None) is not None
