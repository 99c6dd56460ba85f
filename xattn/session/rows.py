"""Rows of a denoiser's batch that follow the prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Encoded:
    """What a pipeline's ``encode_prompt`` was asked for, and what it gave."""

    arguments: dict[str, Any]
    prompt_embeds: Tensor
    negative_embeds: Tensor | None

    @property
    def rows(self) -> int:
        """How many images will be drawn: prompts x images per prompt."""
        return len(self.prompt_embeds)


def encoded(method: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Encoded:
    """Reads one call of ``encode_prompt``."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    positive, negative = result[0], result[1] if len(result) > 1 else None
    return Encoded(dict(bound.arguments), positive, negative)


# The blocks of a guided batch in which the conditional rows are looked for, in this order: most
# pipelines have [negative, positive] and PAG [negative, positive, positive]; Lumina and
# InstructPix2Pix have the positive first.
_BLOCKS = (1, 0, 2)


def conditional_block(states: Tensor, embeds: Tensor) -> slice | None:
    """Finds the rows of a denoiser call that follow the prompts, by comparing embeddings.

    Where the prompt and the negative prompt are the same, the usual layout decides.

    Returns:
        Rows of the batch, or None where no block of them equals the embeddings.
    """
    rows = len(embeds)
    if len(states) % rows or states.shape[1:] != embeds.shape[1:]:
        return None
    embeds = embeds.to(states)
    for block in _BLOCKS:
        span = slice(block * rows, (block + 1) * rows)
        if span.stop <= len(states) and torch.equal(states[span], embeds):
            return span
    return None


def usual_block(batch: int, rows: int) -> slice:
    """Gives the rows that follow the prompts in a loop of one's own: all, or the second half.

    Raises:
        RuntimeError: the batch is neither as large as the rows asked for nor twice as large.
    """
    if batch not in (rows, 2 * rows):
        raise RuntimeError(
            f"the denoiser was called with {batch} rows for {rows} images: which of them follow "
            "the prompts can't be known; pass rows= or embeds="
        )
    return slice(batch - rows, batch)


def text_states(states: Any) -> Tensor | None:
    """Gives the text's part of ``encoder_hidden_states`` (IP-Adapter makes it a tuple)."""
    if isinstance(states, tuple | list):
        states = states[0]
    return states if isinstance(states, Tensor) else None
