"""Sequences of text and image whose places differ from row to row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import AttentionLayer
from xattn.processors.call import Place


@dataclass(frozen=True)
class Ragged:
    """Where text and image stand in each row.

    Attributes:
        total: the positions of the longest row.
        rows: for each row the start and length of its text, and the start of its image.
    """

    total: int
    rows: tuple[tuple[int, int, int], ...]

    def places(
        self, layer: AttentionLayer, grid: tuple[int, int], queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return each row's places.

        Raises:
            RuntimeError: queries or keys are not as many as the longest row has positions.
        """
        if queries != self.total or keys != self.total:
            raise RuntimeError(
                f"layer {layer.name} has {queries} queries and {keys} keys where {self.total} of "
                f"text and image were expected, with a grid of {grid[0]} x {grid[1]}: xattn "
                "doesn't know which is which; please report the model's configuration"
            )
        area = grid[0] * grid[1]
        return tuple(
            Place(
                slice(image, image + area),
                slice(text, text + length),
                slice(image, image + area),
                short=True,
            )
            for text, length, image in self.rows
        )


_lengths: Any = WeakIdKeyDictionary()  # reading a mask waits for the device: once for each run


def lengths_of(mask: Tensor) -> tuple[int, ...]:
    """Return how many positions of each row a mask (rows, positions) leaves."""
    if mask not in _lengths:
        _lengths[mask] = tuple(int(n) for n in mask.sum(1).tolist())
    found: tuple[int, ...] = _lengths[mask]
    return found


_padded: Any = WeakIdKeyDictionary()  # the same texts come in every call, in a new list


def padded(texts: Sequence[Tensor], length: int = 0) -> Tensor:
    """Return texts of several lengths, (positions, channels) each, in one batch.

    Args:
        texts: one for each row.
        length: how many positions the batch has; more if a text is longer.
    """
    known = tuple(map(id, texts)), length
    if texts[0] not in _padded or _padded[texts[0]][0] != known:
        batch = pad_sequence(list(texts), batch_first=True)
        missing = length - batch.shape[1]
        if missing > 0:
            batch = torch.nn.functional.pad(batch, (0, 0, 0, missing))
        _padded[texts[0]] = (known, batch)
    found: Tensor = _padded[texts[0]][1]
    return found
