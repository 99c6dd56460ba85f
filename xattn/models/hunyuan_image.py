"""HunyuanImage 2.1: the image first, then the text in an order that differs from row to row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, check_layout, size_of
from xattn.processors.call import Place
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class HunyuanImage(Joint):
    """The family of HunyuanImage 2.1; guidance runs in two passes.

    Words are those of Qwen2.5-VL in a chat, whose first positions are cut off. What stands in
    quotation marks is read by ByT5, too, for the shapes of its letters: those positions are keys,
    and no word's. The valid positions of both come before all padding, which is masked.
    """

    classes: tuple[str, ...] = ("HunyuanImageTransformer2DModel",)
    two_passes: bool = True
    patch: int | None = 1

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, timestep, encoder_hidden_states, masks)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        glyphs = arguments.get("encoder_attention_mask_2")
        if arguments.get("encoder_hidden_states_2") is None:
            glyphs = None
        if getattr(arguments.get("self"), "context_embedder_2", True) is None:
            glyphs = None  # a model that doesn't read them
        words = arguments["encoder_attention_mask"].bool()
        return DenoiserCall(
            sample=sample,
            latent=size_of(sample),
            timestep=arguments["timestep"],
            states=states,
            component=component,
            layout=(words, None if glyphs is None else glyphs.bool()),
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the image stands, and behind it each row's words.

        Raises:
            RuntimeError: queries or keys are not as many as the image's and the text's.
        """
        grid = self.grid(layer, call.latent)
        own = grid[0] * grid[1]
        words, glyphs = call.layout
        more = 0 if glyphs is None else int(glyphs.shape[1])
        layout = Layout.image_first(int(words.shape[1]) + more, own)
        check_layout(layout, layer, grid, queries, keys)
        rows = range(call.rows)
        orders = [order(words[row], None if glyphs is None else glyphs[row]) for row in rows]
        return tuple(Place(layout.own, own + one, layout.image) for one in orders)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Qwen's positions behind the dropped ones."""
        before, _, after = pipe.prompt_template_encode.partition("{}")
        left = getattr(pipe.tokenizer, "padding_side", "right") == "left"
        dropped = int(pipe.prompt_template_encode_start_idx)
        return (Axis((pipe.tokenizer,), template=Template(before, after, dropped, left)),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask, glyphs, mask); negative prompts have a call of their own."""
        return Encoded(result[0], None)


def order(words: Tensor, glyphs: Tensor | None, picture: int = 0, given: int = 0) -> Tensor:
    """Return where each position of the words stands: picture, glyphs, words, then all padding.

    Args:
        words: which positions of Qwen's are valid, (positions,).
        glyphs: which of ByT5's, or None without them.
        picture: how many positions a picture has.
        given: how many of them are valid.
    """
    valid = words.cumsum(0) - 1
    rest = (~words).cumsum(0) - 1
    if glyphs is None:  # nothing is reordered
        return torch.arange(len(words), device=words.device)
    ahead = given + glyphs.sum()
    behind = picture + len(glyphs) + words.sum()
    return torch.where(words, ahead + valid, behind + rest)
