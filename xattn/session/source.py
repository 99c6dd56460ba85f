"""A run's prompts and embeddings, as its source was asked for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xattn.text import prompt


@dataclass(frozen=True)
class Asked:
    """What a run was asked for: its prompts, which one each image follows, and its embeddings."""

    prompts: tuple[prompt.Prompt, ...]
    rows: tuple[int, ...]
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None
