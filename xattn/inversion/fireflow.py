"""FireFlow: second-order steps of a flow at one call each (Deng et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from xattn.inversion.inversion import Inversion
from xattn.inversion.method import FLOW, Method
from xattn.inversion.solver import Solver, stands_in


class FireFlow(Method):
    """Follow the flow by midpoints, each found with the velocity of the midpoint before.

    z' = z + h v(z + h / 2 v-, halfway), v- being the velocity at the last step's midpoint: that at
    the step's own start, which the midpoint method asks for, changes little where the flow is
    straight. Only the first step has it, so n steps take n + 1 calls, both ways. The authors'
    code replaces values of self-attention in its first steps besides; here edits say what is held.
    """

    name = "fireflow"
    kinds = frozenset((FLOW,))

    def calls(self, steps: int) -> int:
        """Return the denoiser calls."""
        return steps + 1

    def solver(self, scheduler: Any) -> Solver:
        """Return what climbs to noise."""
        return Midpoints(scheduler, up=True)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Descend by the same steps."""
        with stands_in(pipe, Midpoints(pipe.scheduler, up=False)):
            yield


class Midpoints(Solver):
    """A walk whose every prediction is made ahead of its step, found with the one before it.

    The pipeline holds the steps' ends; the denoiser reads the latents moved ahead.

    Args:
        scheduler: as for ``Solver``.
        up: as for ``Solver``.
        part: how far ahead, as a share of the step: its middle, or its end.
    """

    enters = True

    def __init__(self, scheduler: Any, *, up: bool, part: float = 0.5) -> None:
        super().__init__(scheduler, up=up)
        self.part = part
        self._ahead: Tensor | None = None

    def begin(self) -> None:
        """Forget the run before."""
        self._ahead = None

    def calls(self) -> list[float]:
        """Return the timestep of the first step's start, and of a place in each step."""
        legs = [self.leg(index) for index in range(self.path.steps)]
        times = [(self.path.time(start), self.path.time(to)) for start, to in legs]
        return [times[0][0], *(start + self.part * (to - start) for start, to in times)]

    def grouping(self) -> list[int]:
        """Return the step of each call: two calls in the first step, one in each other."""
        return [0, *range(self.path.steps)]

    def entering(self, latents: Tensor) -> Tensor:
        """Return latents moved ahead, but for the first call."""
        if self._ahead is None:
            return latents
        copies = len(latents) // len(self._ahead)  # of guidance's passes
        ahead = self._ahead.repeat(copies, *(1 for _ in self._ahead.shape[1:]))
        return (latents.float() + ahead).to(latents.dtype)

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the end of the step; the start again after the first step's first call."""
        if index == 0 and call == 0:
            self._ahead = self.part * self._span(0) * output
            return latents
        if index + 1 < self.path.steps:
            self._ahead = self.part * self._span(index + 1) * output
        return self.begun_at + self._span(index) * output

    def _span(self, index: int) -> float:
        start, to = self.leg(index)
        return self.path.noise[to] - self.path.noise[start]
