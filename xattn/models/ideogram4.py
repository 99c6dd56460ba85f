"""Ideogram 4: a chat's text, padded on the left, then packed latents, in one stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.chat import chat_template
from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout
from xattn.models.separate import layers_named

_PATCH = 2
"""Latents are packed 2 x 2 into one position before the call."""


@dataclass(frozen=True)
class Ideogram4(Joint):
    """The family of Ideogram 4 (2026).

    Guidance's second model reads no text and isn't recorded. Embeddings are as long as the whole
    sequence, with zeros in the image's positions. Padding attends to padding alone. With
    ``prompt_upsampling`` words are those of the new text.
    """

    classes: tuple[str, ...] = ("Ideogram4Transformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS - {"blend"}  # channels of a pack stand in another order

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the blocks: all joint."""
        return layers_named(denoiser, component, {"attention": "joint"}, _PATCH)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, timestep, ..., position_ids, indicator)``.

        Its time runs from 0, noise, to 1.
        """
        sample = arguments["hidden_states"]
        height, width = _grid_of(arguments["position_ids"])
        area, whole = height * width, int(sample.shape[1])
        time = arguments["timestep"]
        return DenoiserCall(
            sample=sample,
            latent=(height * _PATCH, width * _PATCH),
            timestep=(1 - (time if time.ndim < 2 else time[:, -1]).float()) * 1000,
            states=arguments["encoder_hidden_states"],
            component=component,
            layout=Layout.text_first(whole - area, area),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the chat's positions, behind the padding."""
        chat = [{"role": "user", "content": [{"type": "text", "text": "{}"}]}]
        (axis,) = (chat_template(pipe.tokenizer, chat, add_generation_prompt=True),)
        length = int(given.get("max_sequence_length") or 2048)
        template = replace(axis.template, left=True)
        return (replace(axis, length=length, template=template),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, positions, segments, indicators) of one image of each prompt."""
        return Encoded(result[0], None, repeats=True)


_grids: Any = WeakIdKeyDictionary()  # reading positions waits for the device: once for each run


def _grid_of(positions: Tensor) -> tuple[int, int]:
    """Return (height, width) of the image's grid, which ends at the last position.

    Its positions count from a number that no text reaches.
    """
    if positions not in _grids:
        first, last = positions[0, :, 0] == positions[0, -1, 0], positions[0, -1]
        begin = positions[0][first].amin(0)
        _grids[positions] = tuple(int(side) + 1 for side in (last - begin)[1:].tolist())
    found: tuple[int, int] = _grids[positions]
    return found
