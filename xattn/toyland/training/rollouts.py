"""States that the student itself meets while it draws.

A student that is taught on noised scenes alone is never shown what its own errors lead to: a
shape once begun wrongly looks like no noised scene. There, too, the teacher knows what the caption
asks for (Ross et al. 2011, "DAgger").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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


@dataclass(frozen=True)
class Drawings:
    """Pictures under way, one a row; a step takes `strides` off their `levels` of noise."""

    noisy: Tensor
    levels: Tensor
    strides: Tensor
    guidance: Tensor
    ids: Tensor
    hard: Tensor

    @classmethod
    def begin(cls, batch: Batch, random: torch.Generator) -> Drawings:
        """Begin a picture of each of a batch's captions, from noise."""
        count, device = len(batch.ids), batch.clean.device
        steps = torch.empty(count).uniform_(*STEPS, generator=random).round()
        guidance = torch.empty(count).uniform_(*GUIDANCE, generator=random)
        noise = torch.randn(batch.clean.shape, generator=random)
        levels = torch.ones(count)
        noise, levels, strides, guidance = (
            part.to(device) for part in (noise, levels, 1 / steps, guidance)
        )
        return cls(noise, levels, strides, guidance, batch.ids, batch.hard)

    def renewed(self, new: Drawings) -> Drawings:
        """Return `new` where a picture has ended."""
        ended = self.levels < LAST_LEVEL
        renewed = (
            torch.where(ended.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)
            for ours, theirs in (
                (getattr(self, field.name), getattr(new, field.name)) for field in fields(self)
            )
        )
        return Drawings(*renewed)

    def stepped(self, prompted: Tensor, unprompted: Tensor) -> Drawings:
        """Take a step along the guided velocity."""
        rows = (-1, 1, 1, 1)
        velocity = unprompted + self.guidance.view(rows) * (prompted - unprompted)
        noisy = self.noisy - self.strides.view(rows) * velocity
        return replace(self, noisy=noisy, levels=self.levels - self.strides)


class Rollouts:
    """Pictures that the student draws on and on; each step is a lesson."""

    def __init__(self) -> None:
        self.under_way: Drawings | None = None

    def meet(
        self, batch: Batch, predict: Predict, random: torch.Generator
    ) -> tuple[Lesson, Tensor]:
        """Return where the pictures are, as lessons that no teacher has seen yet, and go on.

        Also says of which rows the caption is a hard scene's. One that has ended begins anew with
        the batch's caption of its row.
        """
        now = Drawings.begin(batch, random)
        if self.under_way is not None:
            now = self.under_way.renewed(now)
        self.under_way = now.stepped(*predict(now.noisy, now.levels, now.ids))
        unknown, untaught = torch.zeros_like(now.noisy), torch.zeros_like(now.hard)
        return Lesson(now.noisy, now.levels, now.ids, unknown, unknown, untaught), now.hard
