"""RF-Solver: second-order steps of a flow, up and down (Wang et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from xattn.inversion.inversion import Inversion
from xattn.inversion.method import FLOW, Method
from xattn.inversion.solver import Solver, stands_in


class RFSolver(Method):
    """Follow the flow by its Taylor expansion of second order, in inversion and in edits.

    z + h v + h^2 / 2 v', v' being the difference to the velocity half a step on, over h / 2, as in
    the authors' code. Two calls a step both ways. Their RF-Edit also shares features of
    self-attention between the two ways; here attention is held as the edits say.
    """

    name = "rf-solver"
    kinds = frozenset((FLOW,))

    def calls(self, steps: int) -> int:
        """Return the denoiser calls."""
        return 2 * steps

    def solver(self, scheduler: Any) -> Solver:
        """Return what climbs to noise."""
        return Taylor(scheduler, up=True)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Descend by the same steps."""
        with stands_in(pipe, Taylor(pipe.scheduler, up=False)):
            yield


class Taylor(Solver):
    """A walk by steps of second order."""

    order = 2

    def __init__(self, scheduler: Any, *, up: bool) -> None:
        super().__init__(scheduler, up=up)
        self._velocity: Tensor | None = None

    def calls(self) -> list[float]:
        """Return the timesteps of a step's start and of its middle."""
        legs = [self.leg(index) for index in range(self.path.steps)]
        times = [(self.path.time(start), self.path.time(to)) for start, to in legs]
        return [t for start, to in times for t in (start, (start + to) / 2)]

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the middle of the step, then its end."""
        start, to = self.leg(index)
        h = self.path.noise[to] - self.path.noise[start]
        if call == 0:
            self._velocity = output
            return latents + h / 2 * output
        assert self._velocity is not None
        slope = (output - self._velocity) / (h / 2)
        return self.begun_at + h * self._velocity + h**2 / 2 * slope
