"""Ovis-Image: FLUX.1's blocks, words of Qwen3 within a chat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
from packaging.version import Version
from torch import Tensor

from xattn.models.chat import chat_template
from xattn.models.family import NOTHING, Axis, Encoded
from xattn.models.flux import Flux

_BOTH = Version(diffusers.__version__) >= Version("0.39")
"""Whether one call of encode_prompt encodes the prompts and the negative ones."""


@dataclass(frozen=True)
class OvisImage(Flux):
    """The family of Ovis-Image. The chat's first positions, its instruction, are cut off."""

    classes: tuple[str, ...] = ("OvisImageTransformer2DModel",)
    two_passes: bool = not _BOTH

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the chat's positions behind the instruction."""
        chat = [{"role": "user", "content": f"{pipe.system_prompt}{{}}"}]
        how = {"add_generation_prompt": True, "enable_thinking": False}
        return (chat_template(pipe.tokenizer, chat, int(pipe.user_prompt_begin_id), **how),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, ids, negative ids); before diffusers 0.39 (positive, ids)."""
        return Encoded(result[0], result[1] if _BOTH else None)
