"""The schedule of a run, and which step a denoiser call belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """The denoiser calls of a run, grouped into the steps of its schedule.

    Attributes:
        steps: for each denoiser call, the step it belongs to.
        timesteps: the timestep of each step.
        at: the timestep of each call.
    """

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    at: tuple[float, ...]

    @property
    def calls(self) -> int:
        """How often the denoiser is called."""
        return len(self.steps)

    def ends_step(self, call: int) -> bool:
        """Tells whether a call is the last one of its step."""
        return call + 1 >= len(self.steps) or self.steps[call + 1] != self.steps[call]

    @classmethod
    def of(
        cls, timesteps: Sequence[float], order: int = 1, *, repeats: bool = False, lead: int = 0
    ) -> Schedule:
        """Groups a scheduler's timesteps into steps.

        Args:
            timesteps: one for each denoiser call.
            order: calls a step: 2 for Heun and DPM2, one time less in the last step.
            repeats: whether equal timesteps that follow one another are one step, as in PNDM's
                warm-up. Elsewhere they are steps apart, which a coarse schedule rounded alike.
            lead: how many calls at the beginning go four to a step, Runge and Kutta's.
        """
        steps: list[int] = []
        starts: list[float] = []
        for call, t in enumerate(timesteps):
            if call < lead:
                new = call % 4 == 0
            elif order > 1:
                new = call % order == 0
            else:
                new = not (repeats and call > lead and t == timesteps[call - 1])
            if new:
                starts.append(float(t))
            steps.append(len(starts) - 1)
        return cls(tuple(steps), tuple(starts), tuple(map(float, timesteps)))


@dataclass(frozen=True)
class Clock:
    """A run's schedule, and how a denoiser call is known to be the one that it says.

    Attributes:
        plan: the schedule.
        timesteps: the scheduler's own tensor, of which pipelines pass one element after another.
        begin: which of them is the first call's.
    """

    plan: Schedule
    timesteps: Tensor
    begin: int

    def is_at(self, call: int, given: Any) -> bool:
        """Tells whether a timestep is that of a call.

        An element of the scheduler's tensor is known by its place, so that nothing waits for the
        device; any other number by its value.
        """
        if call >= self.plan.calls:
            return False
        if _place_in(self.timesteps, given) == self.begin + call:
            return True
        value, expected = timestep_of(given), self.plan.at[call]
        narrow = isinstance(given, Tensor) and given.dtype in (torch.float16, torch.bfloat16)
        return math.isclose(value, expected, rel_tol=4e-3 if narrow else 1e-6)


def clock_of(scheduler: Any, calls: int | None, given: Any) -> Clock:
    """Derives a run's clock from its scheduler, just before the first denoiser call.

    Args:
        scheduler: after ``set_timesteps``.
        calls: how many denoiser calls the pipeline will make, where it says so.
        given: the timestep of the first call: img2img and ``denoising_end`` shorten the schedule.

    Raises:
        RuntimeError: the timestep isn't one of the scheduler's.
    """
    base: Tensor = scheduler.timesteps
    timesteps = [float(t) for t in base.tolist()]
    begin = _place_in(base, given)
    if begin is None:
        begin = _first_call(timesteps, timestep_of(given), calls, scheduler)
    stop = len(timesteps) if calls is None else begin + calls
    prk = getattr(scheduler, "prk_timesteps", None)
    plan = Schedule.of(
        timesteps[begin:stop],
        int(getattr(scheduler, "order", 1)),
        repeats="skip_prk_steps" in scheduler.config,
        lead=0 if prk is None else max(0, len(prk) - begin),
    )
    return Clock(plan, base, begin)


def _first_call(timesteps: list[float], first: float, calls: int | None, scheduler: Any) -> int:
    places = [i for i, t in enumerate(timesteps) if math.isclose(t, first, rel_tol=1e-6)]
    if not places:
        shown = ", ".join(f"{t:g}" for t in timesteps[:6])
        raise RuntimeError(
            f"the denoiser was called at timestep {first:g}, which is none of the scheduler's "
            f"({shown} ...): pass it as the scheduler gives it"
        )
    begin = getattr(scheduler, "begin_index", None)
    if begin in places:
        return int(begin)
    fitting = [i for i in places if calls is not None and i + calls == len(timesteps)]
    return (fitting or places)[0]


def timestep_of(given: Any) -> float:
    """Gives a timestep's value, of a number, a tensor, or a tensor with one for each row."""
    return float(torch.as_tensor(given).flatten()[0])


def _place_in(base: Tensor, given: Any) -> int | None:
    """Tells which element of a tensor another tensor is, without reading either."""
    if not isinstance(given, Tensor) or given.numel() != 1 or given.dtype != base.dtype:
        return None
    if given.device != base.device or not given.untyped_storage().data_ptr():
        return None
    offset = given.data_ptr() - base.data_ptr()
    place, rest = divmod(offset, base.element_size())
    return place if rest == 0 and 0 <= place < len(base) else None
