"""Training in several processes of one thread each, their gradients averaged.

On a busy CPU this is several times faster than one process of several threads, whose every small
operation waits for the slowest thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Team:
    """The processes that train together; a team of one needs no communication."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its mean over the team."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def agree(self, value: float) -> float:
        """Give every process the leader's value."""
        if self.size == 1:
            return value
        shared = torch.tensor([value if self.leads else 0.0], dtype=torch.float64)
        dist.all_reduce(shared)
        return float(shared)

    def wait(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


ALONE = Team()
