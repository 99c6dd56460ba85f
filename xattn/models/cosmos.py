"""Cosmos: words in cross-attention of its own, over the frames of a video, or over an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.chat import chat_template
from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.separate import Separate, layers_named

_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
"""What the pipelines of Cosmos Predict 2.5 write in front of a prompt."""


@dataclass(frozen=True)
class Cosmos(Separate):
    """The family of Cosmos Predict 1, 2 and 2.5 (NVIDIA 2025): images and videos.

    Words are T5's, in 2.5 those of a vision and language model in a chat. Guidance runs in two
    passes; one ``encode_prompt`` encodes both prompts. Padding isn't masked. The denoiser is told
    a noise level of its own: the timestep is the one that the pipeline is at.
    """

    classes: tuple[str, ...] = ("CosmosTransformer3DModel",)

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[None]:
        """Note which pipeline the denoiser's calls are of."""
        model = _unwrapped(pipe.transformer)
        _pipes[model] = pipe
        try:
            yield
        finally:
            del _pipes[model]

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention layers of the blocks."""
        model = _unwrapped(denoiser)
        patch, roles = int(model.config.patch_size[1]), dict(self.roles)
        return layers_named(model, component, roles, patch, "transformer_blocks.")

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; an image's states can stand beside the text's."""
        call, model = super().read(arguments, component), _unwrapped(arguments["self"])
        states: Any = call.states
        at = getattr(_pipes.get(model), "_current_timestep", None)
        return replace(
            call,
            states=states[0] if isinstance(states, tuple) else states,
            timestep=call.timestep if at is None else at,
            frames=int(call.sample.shape[2]) // int(model.config.patch_size[0]),
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions, or in 2.5 the chat's."""
        if not type(pipe).__name__.startswith("Cosmos2_5"):
            return (Axis((pipe.tokenizer,)),)
        texts = (("system", _SYSTEM), ("user", "{}"))
        chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts]
        return (chat_template(pipe.tokenizer, chat, add_generation_prompt=False),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative)."""
        return Encoded(result[0], result[1])

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: guidance runs in two passes."""
        raise ValueError(
            "previews=True can't be had with Cosmos, whose guidance runs in two passes; leave it "
            "out"
        )


_pipes: Any = WeakIdKeyDictionary()  # the pipeline of a denoiser, inside a block


def _unwrapped(denoiser: Any) -> Any:
    return getattr(denoiser, "_orig_mod", denoiser)
