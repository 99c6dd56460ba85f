"""Embeddings of a prompt with some of its words absent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from xattn.api.concepts import encode_prompts
from xattn.attribution.players import Player, without
from xattn.models.family import Family
from xattn.text.prompt import Prompt

Absent = Literal["removed", "padding", "mean"]
ABSENT: dict[str, str] = {
    "removed": "the text is encoded again without the word",
    "padding": "the empty prompt's embedding stands at the word's positions",
    "mean": "the mean embedding of the words stands at the word's positions",
}
"""What it means that a word is absent."""


class Texts:
    """A prompt whose words can be absent, as the denoiser reads it.

    A pooled text vector, where a model takes one, is always that of the text without the absent
    words: it can't be split by positions.

    Args:
        pipe: the pipeline whose encoders read the texts.
        family: its family.
        prompt: the prompt.
        players: its words or phrases.
        absent: a name of ``ABSENT``.

    Raises:
        ValueError: absent is another name.
    """

    def __init__(
        self,
        pipe: Any,
        family: Family,
        prompt: Prompt,
        players: Sequence[Player],
        absent: str = "removed",
    ) -> None:
        if absent not in ABSENT:
            raise ValueError(f"absent={absent!r} must be one of {', '.join(ABSENT)}")
        self.pipe, self.family, self.prompt = pipe, family, prompt
        self.players, self.absent = tuple(players), absent
        self.device = torch.device(pipe._execution_device)
        self._full: tuple[Any, ...] | None = None
        self._fill: Tensor | None = None

    @torch.no_grad()
    def encoded(self, present: Tensor) -> tuple[Any, ...]:
        """Return what ``encode_prompt`` gives for some subsets of the words.

        Args:
            present: bool (rows, players), which words each row has.
        """
        found = self._encode([self.text(row) for row in present.tolist()])
        if self.absent == "removed":
            return found
        states = self.full[0].expand(len(present), -1, -1).clone()  # (rows, tokens, channels)
        for row, had in enumerate(present.tolist()):
            places = [p for player, is_in in zip(self.players, had, strict=True)
                      if not is_in for p in player.positions]  # fmt: skip
            states[row, places] = self.filling[places]
        return (states, *found[1:])

    def text(self, present: Sequence[bool]) -> str:
        """Return the prompt without the absent words."""
        gone = [span for player, had in zip(self.players, present, strict=True)
                if not had for span in player.spans]  # fmt: skip
        return without(self.prompt.text, gone) if gone else self.prompt.text

    @property
    def full(self) -> tuple[Any, ...]:
        """The whole prompt, one row."""
        if self._full is None:
            self._full = self._encode([self.prompt.text])
        return self._full

    @property
    def filling(self) -> Tensor:
        """The embedding in place of an absent word at each position, (tokens, channels)."""
        if self._fill is None:
            if self.absent == "mean":
                places = [p for player in self.players for p in player.positions]
                states = self.full[0][0]
                self._fill = states[places].mean(0).expand_as(states)
            else:
                self._fill = self._encode([""])[0][0]
        return self._fill

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> tuple[Any, ...]:
        return tuple(encode_prompts(self.pipe, texts, self.device))


def of_rows(encoded: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
    """Return one row's embeddings, repeated; what has no axis of rows stays.

    Only the states and what is shaped (1, channels) have one: FLUX's positions of the text don't.
    """
    return tuple(
        each.expand(rows, *each.shape[1:]) if isinstance(each, Tensor) and len(each) == 1 else each
        for each in encoded
    )
