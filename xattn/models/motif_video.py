"""Motif-Video: frames, then text, in one attention; then an attention to the text alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Role
from xattn.models.joint import Joint, Layout, patched_call
from xattn.models.separate import layers_named
from xattn.processors.call import Place


@dataclass(frozen=True)
class MotifVideo(Joint):
    """The family of Motif-Video (2026); guidance runs in two passes.

    Blocks attend to video and text in one call, some then to the text alone. The last blocks read
    no text. A given image's positions stand in front of the text. Padding is masked.
    """

    classes: tuple[str, ...] = ("MotifVideoTransformer3DModel",)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the blocks that read the text."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        count = len(model.single_transformer_blocks)
        last = range(count - int(model.config.num_decoder_layers), count)
        without = tuple(f"{component}single_transformer_blocks.{n}." for n in last)
        found: list[AttentionLayer] = []
        for blocks in self.blocks:
            roles: dict[str, Role] = {"attn": "joint", "cross_attn": "cross"}
            found += layers_named(model, component, roles, within=f"{blocks}.")
        return tuple(layer for layer in found if not layer.name.startswith(without))

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, timestep, encoder_hidden_states, mask, ...)``."""
        config = arguments["self"].config
        frames = int(arguments["hidden_states"].shape[2]) // int(config.patch_size_t)
        given = arguments.get("image_embeds")
        picture = 0 if given is None else int(given.shape[1])

        def lay(text: int, own: int) -> Layout:
            return Layout.image_first(text, own, own + picture)

        return patched_call(
            arguments, component, arguments["encoder_hidden_states"], int(config.patch_size),
            lay=lay, frames=frames,
        )  # fmt: skip

    def places(  # type: ignore[override]
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...] | None:
        """Return where text and video stand; None where the video reads the text alone."""
        if layer.role == "cross":
            return None
        return super().places(call, layer, queries, keys)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5Gemma's positions."""
        return (Axis((pipe.tokenizer,)),)
