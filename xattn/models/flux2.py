"""FLUX.2 and FLUX.2 Klein: a chat template's text first, packed latents, references behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.chat import chat_template
from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.flux import Flux


@dataclass(frozen=True)
class Flux2(Flux):
    """The family of FLUX.2, whose words are Mistral's, and of Klein, whose words are Qwen's.

    The text axis holds the whole chat, the system message too; words are the prompt's alone.
    Klein's guidance runs in two passes.
    """

    classes: tuple[str, ...] = ("Flux2Transformer2DModel",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., timestep, img_ids, txt_ids)``.

        Raises:
            RuntimeError: references are kept from an earlier call, and aren't among its positions.
        """
        if arguments.get("kv_cache_mode") is not None:
            raise RuntimeError(
                "Flux2KleinKVPipeline keeps its references' keys from the first step for the "
                "others, which xattn can't follow; record Flux2KleinPipeline"
            )
        return super().read(arguments, component)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the chat's positions."""
        system = getattr(pipe, "system_message", None)
        if system is None:
            chat: list[Any] = [{"role": "user", "content": "{}"}]
            how = {"add_generation_prompt": True, "enable_thinking": False}
            return (chat_template(pipe.tokenizer, chat, **how),)
        chat = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("system", system), ("user", "{}"))
        ]
        return (chat_template(pipe.tokenizer, chat, add_generation_prompt=False),)
