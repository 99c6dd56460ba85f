"""Pivots: the source of an edit held to the latents of an inverted photograph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xattn.edits.plan import EditPlan
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Pivots(Instrument):
    """Set rows to an inversion's pivots after each step (Ju et al. 2024).

    It runs before the blender, so that blends bring the pivots into the edited images. Siblings
    that change nothing, an empty edit or a weight of 1, are held like the source.

    Args:
        plan: the plan of the edits; the batch is prompt-major.
        pivots: latents after each step as the scheduler holds them, (channels, height, width).
        start: share of the run before which all rows are held.
        pinned: whether the source is held to the end.
    """

    between_steps = True

    def __init__(
        self, plan: EditPlan, pivots: Sequence[Tensor], *, start: float = 0.0, pinned: bool = True
    ) -> None:
        self.plan = plan
        self.pivots = list(pivots)
        self.start = start
        self.pinned = pinned
        self.images = 1

    def begin(self, sampling: Sampling) -> None:
        """Check that the run has the inversion's steps.

        Raises:
            ValueError: it has others.
        """
        if sampling.steps != len(self.pivots):
            raise ValueError(
                f"the photograph was inverted in {len(self.pivots)} steps, and this run has "
                f"{sampling.steps}: invert it again with as many"
            )
        self.images = sampling.images // len(self.plan.prompts)

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        """Return the latents with the held rows at their pivots, bit for bit."""
        pivot = self.pivots[step].to(latents)
        if step + 1 <= self.start * len(self.pivots):
            return pivot.expand_as(latents).clone()
        if not self.pinned:
            return latents
        held = [0, *(j for j, same in enumerate(self._unchanged(), 1) if same)]
        rows = [j * self.images + i for j in held for i in range(self.images)]
        found = latents.clone()
        found[torch.tensor(rows, device=latents.device)] = pivot
        return found

    def _unchanged(self) -> list[bool]:
        """Return which siblings are drawn like the source: the same text, all weights 1."""
        text = self.plan.texts[0]
        return [
            sibling.prompt.text == text and bool((sibling.weights == 1).all())
            for sibling in self.plan.siblings
        ]
