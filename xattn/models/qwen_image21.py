"""Qwen-Image 2.1: text that reads itself, then the image, which reads both; keys are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, given_texts
from xattn.models.separate import layers_named
from xattn.processors.call import Place
from xattn.processors.probabilities import Tokens
from xattn.text.tokenize import Template

_SLOT = 4
"""Latents that stand where the text encoder read one position of a given picture."""


@dataclass(frozen=True)
class QwenImage21(Joint):
    """The family of Qwen-Image 2.1 (Qwen Team 2026).

    The order is causal: text, given pictures within it, the image that is drawn. A layer attends
    to each stretch in a call of its own, the image's last, and to the image alone once the keys of
    what stands before it are kept (``use_kv_cache``): that last call is the one recorded.
    """

    classes: tuple[str, ...] = ("QwenImage21Transformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = True

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention, in whose last call the image alone asks."""
        found = layers_named(denoiser, component, {"attn": "joint"}, within="transformer_blocks.")
        return tuple(replace(layer, text_reads=False) for layer in found)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., timestep, img_shapes, img_mask)``."""
        states, shapes = arguments["encoder_hidden_states"], arguments["img_shapes"][0]
        order = _order_of(arguments["img_mask"], int(states.shape[1]), shapes)
        kept = arguments.get("kv_cache_mode") == "cached"
        return DenoiserCall(
            sample=arguments["hidden_states"],
            latent=(int(shapes[-1][1]), int(shapes[-1][2])),
            timestep=arguments["timestep"] * 1000,
            states=states,
            component=component,
            layout=order,
            nth=0 if kept else order.before,
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the text stands among the keys, and the image behind it.

        Raises:
            RuntimeError: queries or keys are not as many as the image's and the text's.
        """
        order: Order = call.layout
        height, width = self.grid(layer, call.latent)
        own = height * width
        if (queries, keys) != (own, order.start + own):
            raise RuntimeError(
                f"layer {layer.name} has {queries} queries and {keys} keys where {own} of the grid "
                f"{height} x {width} were expected, and {order.start} more keys in front of them: "
                "xattn doesn't know which is which; please report the model's configuration"
            )
        return (Place(slice(0, own), order.text, slice(order.start, keys)),) * call.rows

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the positions behind the system's message.

        A given picture's mark becomes as many positions as the encoder makes of it: how many more
        the embeddings' length tells, of the longest prompt.
        """
        images, dropped = given.get("image"), int(pipe._drop_idx)
        if images is None:
            before, _, after = pipe.prompt_template_t2i.partition("{}")
            return (Axis((pipe.processor.tokenizer,), template=Template(before, after, dropped)),)
        before, _, after = pipe.prompt_template_ti2i.partition("{}")
        mark = before[before.index("<image1>") :]
        for n in range(2, len(images) + 1):
            before += f" {mark.replace('1', str(n), 1)}"
        texts, tokenizer = given_texts(given), pipe.processor.tokenizer
        if states is not None and texts:
            longest = max(len(tokenizer(before + text + after).input_ids) for text in texts)
            dropped = longest - int(states.shape[1])
        return (Axis((tokenizer,), template=Template(before, after, dropped)),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask, pictures); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)


@dataclass(frozen=True)
class Order:
    """What stands in front of the drawn image.

    Attributes:
        text: the keys of the token axis; a position of a given picture has its first latent's.
        start: the first key of the drawn image.
        before: how many stretches, of text or a picture, come before it.
    """

    text: Tokens
    start: int
    before: int


_orders: Any = WeakIdKeyDictionary()  # reading a mask waits for the device: once for each run


def _order_of(mask: Tensor, length: int, shapes: Sequence[Sequence[int]]) -> Order:
    """Return the order of a text of ``length`` positions, the same in each row.

    Args:
        mask: (rows, positions), true where the text encoder read pictures.
        length: of the text.
        shapes: (frames, height, width) of the pictures, the drawn one last.
    """
    if mask not in _orders:
        slots: list[bool] = mask[0, :length].tolist()
        pictures = (n for n, (_, h, w) in enumerate(shapes) for _ in range(h * w // _SLOT))
        owners = [next(pictures) if slot else -1 for slot in slots]
        sizes = mask[0, :length] * (_SLOT - 1) + 1
        ends = sizes.cumsum(0)
        text = ends - sizes if any(slots) else slice(0, length)
        _orders[mask] = Order(text, int(ends[-1]), len(list(groupby(owners))))
    found: Order = _orders[mask]
    return found
