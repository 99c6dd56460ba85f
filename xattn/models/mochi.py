"""Mochi 1: the frames of a video, then a row's valid text, in one attention for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, check_layout, size_of
from xattn.models.ragged import lengths_of
from xattn.processors.call import Place


@dataclass(frozen=True)
class Mochi(Joint):
    """The family of Mochi 1 (Genmo 2024).

    A layer attends to each row of the batch by itself, because texts are of different lengths:
    padding is left out.
    """

    classes: tuple[str, ...] = ("MochiTransformer3DModel",)
    blocks: tuple[str, ...] = ("transformer_blocks",)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention, a call for each row."""
        return tuple(replace(layer, rowwise=True) for layer in super().layers(denoiser, component))

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, encoder_hidden_states, timestep, mask)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        return DenoiserCall(
            sample=sample,
            latent=size_of(sample),
            timestep=arguments["timestep"],
            states=states,
            component=component,
            layout=(int(states.shape[1]), lengths_of(arguments["encoder_attention_mask"])),
            frames=int(sample.shape[2]),
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the video and behind it each row's text stand, of rows of one length.

        Raises:
            RuntimeError: queries or keys are not as many as the video's and a row's text.
        """
        grid = self.grid(layer, call.latent)
        own, (axis, lengths) = call.frames * grid[0] * grid[1], call.layout
        found = keys - own if keys - own in lengths else lengths[0]
        layout = Layout.image_first(found, own)
        check_layout(layout, layer, grid, queries, keys, call.frames)
        place = Place(layout.own, layout.text, layout.image, short=found < axis)
        return (place,) * call.rows

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,)),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, its mask, negative, its mask)."""
        return Encoded(result[0], result[2])
