"""Prompts on a denoiser's token axis, by the tokenizers of its stretches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xattn.models.family import Axis
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize_common


def axis_prompts(axes: Sequence[Axis], texts: list[str], length: int) -> list[Prompt]:
    """Return texts as prompts on a token axis of ``length`` positions."""
    return tokenized(axes, read_texts(axes, {}, texts), length, len(texts))


def reader(axes: Sequence[Axis], length: int | None = None) -> Callable[[str], Prompt]:
    """Return a function from a text to its prompt on a token axis.

    Args:
        axes: its stretches.
        length: its number of positions; by default as many as its tokenizers could fill.
    """
    last = axes[-1]
    most = last.length or min(int(t.model_max_length) for t in last.tokenizers)
    whole = length or last.offset + most

    def read(text: str) -> Prompt:
        given = [[[text] for _ in axis.texts] for axis in axes]
        return tokenized(axes, given, whole, 1)[0]

    return read


def read_texts(
    axes: Sequence[Axis], given: dict[str, Any], texts: list[str], prefix: str = ""
) -> list[list[list[str]]]:
    """Return for each stretch of the token axis the texts under each of its arguments."""
    return [
        [given_texts(given.get(prefix + name)) or texts for name in axis.texts] for axis in axes
    ]


def tokenized(
    axes: Sequence[Axis], read: Sequence[list[list[str]]], length: int, images: int
) -> list[Prompt]:
    """Return the prompts on a token axis of ``length`` positions.

    A stretch whose encoder reads another text than the first's has no words of the prompt.
    """
    texts = read[0][0]
    if not texts:
        return [Prompt.anonymous(length)]
    if images % len(texts):
        raise ValueError(f"{images} embeddings were passed and {len(texts)} prompts: give one each")
    ends = [*(axis.offset for axis in axes[1:]), length]
    rooms = [end - axis.offset for axis, end in zip(axes, ends, strict=True)]
    found = _on_axis(axes[0], read[0], rooms[0])
    for axis, theirs, room in zip(axes[1:], read[1:], rooms[1:], strict=True):
        if theirs[0] == texts:
            others = _on_axis(axis, theirs, room)
            found = [p.beside(q, axis.offset) for p, q in zip(found, others, strict=True)]
    return found


def _on_axis(axis: Axis, read: list[list[str]], room: int) -> list[Prompt]:
    # a T5 pipeline reads fewer tokens than its tokenizer could
    length = min(room, *(int(t.model_max_length) for t in axis.tokenizers))
    how: dict[str, Any] = {"convert": axis.convert, "template": axis.template}
    found = [tokenize_common(axis.tokenizers, text, max_length=length, **how) for text in read[0]]
    if all(texts == read[0] for texts in read[1:]):
        return found
    reason = f"two different texts share one token axis ({' and '.join(axis.texts)})"
    return [Prompt.clashing(p.text, p.length, reason) for p in found]


def given_texts(given: Any) -> list[str]:
    """Return a pipeline's argument, a text or several or None, as a list."""
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)
