"""Lumina 2: each row is its text, its image and padding; guidance runs in two passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall
from xattn.models.ragged import Ragged, lengths_of
from xattn.models.separate import Separate, layers_named
from xattn.processors.call import Place
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class Lumina2(Separate):
    """The family of Lumina-Image 2.0 (Qin et al. 2025).

    A system prompt stands before the prompt, and not before negative ones. Its refiners attend to
    the text, or to the image, alone: they are not among the layers.
    """

    classes: tuple[str, ...] = ("Lumina2Transformer2DModel",)
    two_passes: bool = True

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the joint blocks."""
        return layers_named(denoiser, component, {"attn": "joint"}, within="layers.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; its time runs from 0, noise, to 1."""
        call = super().read(arguments, component)
        patch = int(arguments["self"].config.patch_size)
        area = (call.latent[0] // patch) * (call.latent[1] // patch)
        lengths = lengths_of(arguments["encoder_attention_mask"])
        layout = Ragged(max(lengths) + area, tuple((0, n, n) for n in lengths))
        return replace(call, timestep=(1 - call.timestep) * 1000, layout=layout)

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where each row's text and its image stand."""
        layout: Ragged = call.layout
        return layout.places(layer, self.grid(layer, call.latent), queries, keys)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Gemma's positions, the system prompt's among them."""
        system = given.get("system_prompt")
        before = (pipe.system_prompt if system is None else system) + " <Prompt Start> "
        return (Axis((pipe.tokenizer,), template=Template(before)),)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: guidance runs in two passes."""
        raise ValueError(
            "previews=True can't be had with Lumina 2, whose guidance runs in two passes; leave it "
            "out"
        )
