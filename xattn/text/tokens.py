"""The parts of a prompt: its tokens, and its words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One of a prompt's own tokens.

    Attributes:
        position: its index on the model's token axis.
        id: its number in the tokenizer's vocabulary.
        text: its slice of the prompt. Several byte tokens can share one character, and all vectors
            of a textual inversion share its name.
        start: offset of the slice in the prompt, in characters.
        end: offset after the slice.
    """

    position: int
    id: int
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Word:
    """A word of a prompt: a stretch without white space, without surrounding punctuation."""

    text: str
    start: int
    end: int
    positions: tuple[int, ...]
