"""Krea 2: Qwen3-VL's words first, within a template, then packed latents; two passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout
from xattn.models.separate import layers_named
from xattn.text.tokenize import Template

_PATCH = 2
"""Latents are packed 2 x 2 into one position before the call."""


@dataclass(frozen=True)
class Krea2(Joint):
    """The family of Krea 2 (2026).

    The template's first positions are cut off; padding stands between the prompt and the template's
    end, and is masked. The text comes as several states of the encoder, which a stack of its own
    joins: those layers attend to text alone, and are left out.
    """

    classes: tuple[str, ...] = ("Krea2Transformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = True

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention: all joint."""
        return layers_named(denoiser, component, {"attn": "joint"}, _PATCH, "transformer_blocks.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., timestep, position_ids)``."""
        sample, states = arguments["hidden_states"], arguments["encoder_hidden_states"]
        height, width = _grid_of(arguments["position_ids"])
        return DenoiserCall(
            sample=sample,
            latent=(height * _PATCH, width * _PATCH),
            timestep=arguments["timestep"] * 1000,
            states=states,
            component=component,
            layout=Layout.text_first(int(states.shape[1]), int(sample.shape[1])),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the positions behind the template's beginning, with room for its end."""
        dropped = int(pipe.prompt_template_encode_start_idx)
        template = Template(pipe.prompt_template_encode_prefix, "", dropped)
        return (Axis((pipe.tokenizer,), template=template),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, mask); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)


_grids: Any = WeakIdKeyDictionary()  # reading positions waits for the device: once for each run


def _grid_of(positions: Tensor) -> tuple[int, int]:
    """Return (height, width) of the image's grid; the text's positions are zeros."""
    if positions not in _grids:
        _grids[positions] = tuple(int(side) + 1 for side in positions[:, 1:].amax(0).tolist())
    found: tuple[int, int] = _grids[positions]
    return found
