"""Fixed-point inversion: each step backwards solved, not guessed (Pan et al. 2023, AIDI)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from xattn.inversion.method import Method
from xattn.inversion.solver import Solver

ITERATIONS = 5


class FixedPoint(Method):
    """Find for each step the z[t] from which the sampler arrives at z[t - 1].

    z[t] is where z = f(z), f being the step backwards with the prediction at z itself (Pan et al.
    2023; Li et al. 2024, SPDInv, minimize |f(z) - z| by its gradient). Iterated from z[t - 1], at
    the guidance scale of later edits; from the second time on with the mean of the last two, which
    converges where f alone swings (Pan et al.'s empirical acceleration, AIDI-E).
    """

    name = "fixed-point"
    guided = True

    def calls(self, steps: int) -> int:
        """Return the denoiser calls."""
        return steps * ITERATIONS

    def solver(self, scheduler: Any) -> Solver:
        """Return what climbs to noise."""
        return Iterated(scheduler, up=True)


class Iterated(Solver):
    """A climb whose every step is iterated."""

    order = ITERATIONS

    def seen(self, index: int) -> int:
        """Return the level that a step goes to: the prediction is made there."""
        return self.leg(index)[1]

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the next guess."""
        start, to = self.leg(index)
        found = self.path.moved(self.begun_at, output, start, to, to, at=latents)
        return found if call in (0, self.order - 1) else (found + latents) / 2
