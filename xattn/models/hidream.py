"""HiDream-I1: the image first, then each word at three places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall
from xattn.models.joint import Joint, Layout, size_of
from xattn.models.noise import clean_of_flow
from xattn.processors.call import Place

_PATCH = 2
"""Latents along a patch's side."""


@dataclass(frozen=True)
class HiDream(Joint):
    """The family of HiDream-I1.

    A word stands at T5's positions, at those of Llama's last state, and at those of one more
    state of Llama's, another one in each block. An image that isn't square is padded with
    positions to the largest size; they are keys, and no queries of the grid.
    """

    classes: tuple[str, ...] = ("HiDreamImageTransformer2DModel",)
    edits: frozenset[str] = JOINT_EDITS
    blocks: tuple[str, ...] = ("double_stream_blocks", "single_stream_blocks")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, timesteps, encoder_hidden_states_t5, ...)``."""
        sample, t5 = arguments["hidden_states"], arguments["encoder_hidden_states_t5"]
        llama = arguments["encoder_hidden_states_llama3"]
        return DenoiserCall(
            sample=sample,
            latent=size_of(sample),
            timestep=arguments["timesteps"],
            states=t5,
            component=component,
            layout=int(t5.shape[1]) + 2 * int(llama.shape[-2]),
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the image and behind it the text stand, the same in every row.

        Raises:
            RuntimeError: queries or keys are not as many as the image's and the text's.
        """
        height, width = self.grid(layer, call.latent)
        own, text = height * width, call.layout
        image = own if call.latent[0] == call.latent[1] else queries - text
        layout = Layout.image_first(text, own, image)
        known = DenoiserCall(
            call.sample, call.latent, call.timestep, call.states, call.component, layout=layout
        )
        return super().places(known, layer, queries, keys)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's stretch, and Llama's twice."""
        asked = int(given.get("max_sequence_length") or 128)
        t5 = min(asked, int(pipe.tokenizer_3.model_max_length))
        llama = min(asked, int(pipe.tokenizer_4.model_max_length))
        if states is not None:
            t5 = int(states.shape[1])
        return (
            Axis((pipe.tokenizer_3,), texts=("prompt_3",)),
            Axis((pipe.tokenizer_4,), offset=t5, texts=("prompt_4",)),
            Axis((pipe.tokenizer_4,), length=llama, offset=t5 + llama, texts=("prompt_4",)),
        )

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents; the pipeline turns the model's output into a velocity."""
        return clean_of_flow(scheduler, sample, -output, timestep)
