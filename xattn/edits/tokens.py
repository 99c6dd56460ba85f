"""The tokens that a sibling's edits name: for a LocalBlend's mask, and for weights of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Positions = tuple[int, ...] | Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """The token positions whose maps form a LocalBlend's mask.

    Attributes:
        source: positions in the source's prompt.
        target: positions in the sibling's prompt.
        source_less: positions in the source's prompt to exclude.
        target_less: positions in the sibling's prompt to exclude.
    """

    source: Positions
    target: Positions
    source_less: Positions
    target_less: Positions

    @property
    def any(self) -> bool:
        """Whether there are any positions."""
        return any(map(len, (self.source, self.target, self.source_less, self.target_less)))

    def on(self, device: torch.device) -> Places:
        """Return the positions as tensors on a device."""
        found = (self.source, self.target, self.source_less, self.target_less)
        return Places(*(torch.as_tensor(p, dtype=torch.long, device=device) for p in found))


@dataclass(frozen=True)
class HeadWeight:
    """A weight of some tokens in single heads.

    Attributes:
        positions: the tokens, on the sibling's axis.
        weight: the factor.
        heads: heads of each layer, by its name.
    """

    positions: tuple[int, ...]
    weight: float
    heads: Mapping[str, Sequence[int]]
