"""Prompts within a chat, as a tokenizer's chat template writes it."""

from __future__ import annotations

from typing import Any

from xattn.models.family import Axis
from xattn.text.tokenize import Template


def chat_template(
    tokenizer: Any, chat: list[Any], dropped: int = 0, *, marks: bool = False, **options: Any
) -> Axis:
    """Return the axis of a prompt that stands at ``{}`` in a chat.

    Args:
        tokenizer: a tokenizer, or a processor that holds one.
        chat: the messages; one of them ends in ``{}``.
        dropped: how many positions at the beginning are cut off.
        marks: whether the pipeline lets the tokenizer add its own marks to the chat's.
        options: of ``apply_chat_template``.

    Raises:
        ValueError: the template does not write the message as it is.
    """
    text: str = tokenizer.apply_chat_template(chat, tokenize=False, **options)
    if text.count("{}") != 1:
        raise ValueError(
            f"the chat template of {type(tokenizer).__name__} doesn't write a prompt once and "
            f"unchanged, but {text!r}: words can't be found in it"
        )
    before, _, after = text.partition("{}")
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not marks:
        dropped += _added_in_front(inner)
    left = getattr(inner, "padding_side", "right") == "left"
    return Axis((inner,), template=Template(before, after, dropped, left))


def _added_in_front(tokenizer: Any) -> int:
    """Return how many marks a tokenizer writes in front of a text: the chat has its own."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return int(special.index(0)) if 0 in special else 0
