"""Occlusion: what changes without each single word (Zeiler & Fergus 2014, for words)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xattn.attribution import levels
from xattn.attribution.method import Asked, Found
from xattn.attribution.targets import Target


@dataclass(frozen=True)
class Occlusion:
    """Each word's score is what the target loses without it; its map is where."""

    name: str = "occlusion"
    levels: tuple[float, ...] = levels.DEFAULT
    along: bool = True

    def rows(self, players: int) -> int:
        """Return one row for each word, and one for the whole prompt."""
        return players + 1

    def find(self, ask: Asked, target: Target) -> Found:
        """Return the target's losses, without one word each."""
        estimates = ask.estimates(~torch.eye(ask.players, dtype=torch.bool))
        whole, full = ask.full[None], ask.full
        scores = target.values(whole, full) - target.values(estimates, full)
        return Found(scores, target.cells(whole, full) - target.cells(estimates, full))
