"""UniEdit-Flow: a corrected climb, and a descent pushed where the two prompts differ (2025)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xattn.inversion.fireflow import Midpoints
from xattn.inversion.inversion import Inversion
from xattn.inversion.method import FLOW, Method
from xattn.inversion.solver import Solver, stands_in


class UniEdit(Method):
    """Climb by predictions at each step's end; descend by both prompts' velocities at one place.

    Up ("Uni-Inv"): z' = z + h v(z + h v-, next level), v- being the prediction before. Down
    ("Uni-Edit"), from 0.4 of the run on: with v of the source's prompt and w of the edit's, both
    at the edit's latents, and the mask m, the mean over channels of w - v, brought to [0, 1],
    z' = z + h (m w + (1 - m) v + omega (1 + m) (w - v)). The guidance scale of an edit is omega (5
    in the authors' code, as 0.4 is one minus their alpha), in the place of guidance by a negative
    prompt. Their demo climbs with an empty prompt, this with the source's; as published no
    attention is held: ``cross_steps=0`` and ``self_steps=0``.
    """

    name = "uniedit"
    kinds = frozenset((FLOW,))
    pinned = True
    start = 0.4
    edits = 1

    def calls(self, steps: int) -> int:
        """Return the denoiser calls."""
        return steps + 1

    def solver(self, scheduler: Any) -> Solver:
        """Return what climbs to noise."""
        return Midpoints(scheduler, up=True, part=1.0)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Descend by both prompts' velocities, without guidance by a negative prompt."""
        omega = float(options["guidance_scale"])
        options["guidance_scale"] = 1.0
        with stands_in(pipe, Fusion(pipe.scheduler, omega)):
            yield


class Fusion(Solver):
    """Steps of the edit's rows by two velocities; the source's rows lend theirs.

    Args:
        scheduler: the pipeline's.
        omega: strength of the push towards the edit's prompt.
    """

    enters = True

    def __init__(self, scheduler: Any, omega: float) -> None:
        super().__init__(scheduler, up=False)
        self.omega = omega

    def entering(self, latents: Tensor) -> Tensor:
        """Return the edit's latents for both prompts."""
        edited = latents.chunk(2)[1]
        return torch.cat([edited, edited])

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the rows after a step; the source's, which is then set to its pivot, unchanged."""
        before, edited = latents.chunk(2)
        own, new = output.chunk(2)
        push = new - own
        mask = push.mean(1, keepdim=True)  # (images, 1, height, width)
        low, high = mask.amin((-2, -1), keepdim=True), mask.amax((-2, -1), keepdim=True)
        mask = (mask - low) / (high - low + 1e-7)
        velocity = mask * new + (1 - mask) * own + self.omega * (1 + mask) * push
        step = self.path.noise[index + 1] - self.path.noise[index]
        return torch.cat([before, edited + step * velocity])
