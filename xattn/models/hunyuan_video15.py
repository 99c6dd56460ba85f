"""HunyuanVideo 1.5: the frames first, then the text in an order that differs from row to row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.chat import chat_template
from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.hunyuan_image import order
from xattn.models.joint import Joint, Layout, check_layout, size_of
from xattn.processors.call import Place


@dataclass(frozen=True)
class HunyuanVideo15(Joint):
    """The family of HunyuanVideo 1.5 (2025), from text and from an image.

    Words are those of Qwen2.5-VL in a chat, whose first positions are cut off. What stands in
    quotation marks is read by ByT5, too, and a given image by a vision encoder: those positions
    are keys, and no word's. Valid positions come before all padding, which is masked.
    """

    classes: tuple[str, ...] = ("HunyuanVideo15Transformer3DModel",)
    two_passes: bool = True
    blocks: tuple[str, ...] = ("transformer_blocks",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(latents, timestep, texts, their masks, image_embeds)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        words, glyphs = (arguments[f"encoder_attention_mask{which}"].bool() for which in ("", "_2"))
        picture = arguments["image_embeds"]
        count = int(picture.shape[1])
        return DenoiserCall(
            sample=sample,
            latent=size_of(sample),
            timestep=arguments["timestep"],
            states=states,
            component=component,
            layout=(words, glyphs, count, count if _is_given(picture) else 0),
            frames=int(sample.shape[2]) // int(arguments["self"].config.patch_size_t),
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the video stands, and behind it each row's words.

        Raises:
            RuntimeError: queries or keys are not as many as the video's and the text's.
        """
        grid = self.grid(layer, call.latent)
        own = call.frames * grid[0] * grid[1]
        words, glyphs, picture, ahead = call.layout
        text = picture + int(words.shape[1]) + int(glyphs.shape[1])
        layout = Layout.image_first(text, own)
        check_layout(layout, layer, grid, queries, keys, call.frames)
        found = (order(words[row], glyphs[row], picture, ahead) for row in range(call.rows))
        return tuple(Place(layout.own, own + one, layout.image) for one in found)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Qwen's positions behind the dropped ones."""
        chat = [
            {"role": "system", "content": pipe.system_message},
            {"role": "user", "content": "{}"},
        ]
        dropped = int(pipe.prompt_template_encode_start_idx)
        return (chat_template(pipe.tokenizer, chat, dropped, add_generation_prompt=True),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask, glyphs, mask); negative prompts have a call of their own."""
        return Encoded(result[0], None)


_given: Any = WeakIdKeyDictionary()  # reading embeddings waits for the device: once for each run


def _is_given(picture: Tensor) -> bool:
    """Return whether an image was given; where there is none, its embeddings are zeros."""
    if picture not in _given:
        _given[picture] = bool(picture.any())
    found: bool = _given[picture]
    return found
