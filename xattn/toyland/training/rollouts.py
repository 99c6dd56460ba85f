"""States that the student itself meets while it draws.

A student that is taught on noised scenes alone is never shown what its own errors lead to: a
shape once begun wrongly looks like no noised scene. There, too, the teacher knows what the caption
asks for (Ross et al. 2011, "DAgger").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from .loop import Batch
from .teacher import Lesson

STEPS: Final = (14, 28)
"""Steps of a whole drawing, from the fewest to the most."""
GUIDANCE: Final = (2.0, 7.0)
LAST_LEVEL: Final = 0.2
"""The level of noise below which a drawing is given up for a new one."""

Predict = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From noisy latents, their levels and ids: the velocities with the caption and without it."""


class Rollouts:
    """Drawings under way, each with its own caption, guidance and number of steps."""

    def __init__(self) -> None:
        self.noisy = self.levels = self.strides = self.guidance = torch.empty(0)
        self.ids = self.hard = torch.empty(0)

    def meet(
        self, batch: Batch, predict: Predict, random: torch.Generator
    ) -> tuple[Lesson, Tensor]:
        """Return where the drawings are, as lessons whose targets are yet to be filled in.

        Also says which of their captions are of hard scenes. Each drawing goes on by one step;
        one that has ended begins anew with the batch's caption of its row.
        """
        if len(self.levels) != len(batch.ids):
            self._begin(batch, random)
        else:
            self._begin_ended(batch, random)
        noisy, levels = self.noisy, self.levels
        prompted, unprompted = predict(noisy, levels, self.ids)
        velocity = unprompted + self.guidance[:, None, None, None] * (prompted - unprompted)
        self.noisy = noisy - self.strides[:, None, None, None] * velocity
        self.levels = levels - self.strides
        nothing = torch.zeros_like(noisy)
        untaught = torch.zeros_like(self.hard)
        return Lesson(noisy, levels, self.ids, nothing, nothing, untaught), self.hard

    def _begin(self, batch: Batch, random: torch.Generator) -> None:
        """Begin a drawing for each row of a batch, from noise."""
        count, device = len(batch.ids), batch.clean.device
        steps = torch.empty(count).uniform_(*STEPS, generator=random).round()
        self.strides = (1 / steps).to(device)
        self.guidance = torch.empty(count).uniform_(*GUIDANCE, generator=random).to(device)
        self.noisy = torch.randn(batch.clean.shape, generator=random).to(device)
        self.levels = torch.ones(count, device=device)
        self.ids, self.hard = batch.ids, batch.hard

    def _begin_ended(self, batch: Batch, random: torch.Generator) -> None:
        """Begin anew where a drawing has ended."""
        under_way = [self.strides, self.guidance, self.noisy, self.levels, self.ids, self.hard]
        going = self.levels >= LAST_LEVEL
        self._begin(batch, random)
        begun = [self.strides, self.guidance, self.noisy, self.levels, self.ids, self.hard]
        self.strides, self.guidance, self.noisy, self.levels, self.ids, self.hard = (
            torch.where(going.view(-1, *[1] * (old.ndim - 1)), old, new)
            for old, new in zip(under_way, begun, strict=True)
        )
