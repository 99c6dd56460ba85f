"""The schedule of a run, and which step a denoiser call belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_INVERTED = 1e-3
"""How exact the timestep of a call is where a pipeline passes 1 - t / 1000 in float32."""


@dataclass(frozen=True)
class Schedule:
    """The denoiser calls of a run, grouped into the steps of its schedule.

    Attributes:
        steps: for each denoiser call, its step.
        timesteps: the timestep of each step.
        at: the timestep of each call.
    """

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    at: tuple[float, ...]

    @property
    def calls(self) -> int:
        """Number of denoiser calls."""
        return len(self.steps)

    def ends_step(self, call: int) -> bool:
        """Return whether a call is the last one of its step."""
        return call + 1 >= len(self.steps) or self.steps[call + 1] != self.steps[call]

    @classmethod
    def of(
        cls, timesteps: Sequence[float], order: int = 1, *, repeats: bool = False, lead: int = 0
    ) -> Schedule:
        """Group a scheduler's timesteps into steps.

        Args:
            timesteps: one per denoiser call.
            order: calls per step: 2 for Heun and DPM2, whose last step has one call less.
            repeats: whether consecutive equal timesteps form one step, as in PNDM's warm-up.
                Otherwise they are separate steps that a coarse schedule rounded alike.
            lead: how many calls at the start come four per step (Runge-Kutta).
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
    """A run's schedule, and the check that a denoiser call is the expected one.

    Attributes:
        schedule: the schedule.
        timesteps: the scheduler's own tensor; pipelines pass its elements one by one.
        begin: index of the first call's element.
    """

    schedule: Schedule
    timesteps: Tensor
    begin: int

    def is_at(self, call: int, given: Any) -> bool:
        """Return whether a timestep belongs to a call.

        Recognize an element of the scheduler's tensor by its memory position, which avoids waiting
        for the device; compare any other number by value.
        """
        if call >= self.schedule.calls:
            return False
        if _place_in(self.timesteps, given) == self.begin + call:
            return True
        return is_time(given, self.schedule.at[call])


def clock_of(scheduler: Any, calls: int | None, given: Any) -> Clock:
    """Derive a run's clock from its scheduler, just before the first denoiser call.

    Args:
        scheduler: the scheduler, after ``set_timesteps``.
        calls: the number of denoiser calls the pipeline announces, or None.
        given: the timestep of the first call: img2img and ``denoising_end`` shorten the schedule.

    Raises:
        RuntimeError: the timestep is not in the scheduler's timesteps.
    """
    base: Tensor = scheduler.timesteps
    timesteps = [float(t) for t in base.tolist()]
    begin = _place_in(base, given)
    if begin is None:
        begin = _first_call(timesteps, given, calls, scheduler)
    stop = len(timesteps) if calls is None else begin + calls
    prk = getattr(scheduler, "prk_timesteps", None)
    own = getattr(scheduler, "steps_of_calls", None)
    if own:  # a scheduler that knows its steps, however many calls each has
        starts = tuple(timesteps[own.index(step)] for step in range(max(own) + 1))
        return Clock(Schedule(tuple(own), starts, tuple(timesteps)), base, 0)
    schedule = Schedule.of(
        timesteps[begin:stop],
        int(getattr(scheduler, "order", 1)),
        repeats="skip_prk_steps" in scheduler.config,
        lead=0 if prk is None else max(0, len(prk) - begin),
    )
    return Clock(schedule, base, begin)


def is_time(given: Any, expected: float) -> bool:
    """Return whether a call's timestep is one of the schedule's, which some pipelines truncate."""
    value = timestep_of(given)
    if isinstance(given, Tensor) and not given.is_floating_point() and value == int(expected):
        return True
    return math.isclose(value, expected, rel_tol=_rounding(given), abs_tol=_INVERTED)


def _rounding(given: Any) -> float:
    """Return how far a timestep may be from the scheduler's, a share of it.

    In half precision it was rounded up to three times: cast, divided, and multiplied again.
    """
    narrow = isinstance(given, Tensor) and given.dtype in (torch.float16, torch.bfloat16)
    return 8e-3 if narrow else 1e-6


def _first_call(timesteps: list[float], given: Any, calls: int | None, scheduler: Any) -> int:
    first = timestep_of(given)
    places = [i for i, t in enumerate(timesteps) if is_time(given, t)]
    if not places:
        shown = ", ".join(f"{t:g}" for t in timesteps[:6])
        raise RuntimeError(
            f"the denoiser was called at timestep {first:g}, which is not one of the scheduler's "
            f"({shown} ...): pass the scheduler's timesteps unchanged"
        )
    begin = getattr(scheduler, "begin_index", None)
    if begin in places:
        return int(begin)
    fitting = [i for i in places if calls is not None and i + calls == len(timesteps)]
    return (fitting or places)[0]


def timestep_of(given: Any) -> float:
    """Return the value of a timestep: a number, a tensor, or a tensor with one per row."""
    return float(torch.as_tensor(given).flatten()[0])


def _place_in(base: Tensor, given: Any) -> int | None:
    """Return which element of a tensor another tensor is, without reading either."""
    if not isinstance(given, Tensor) or not given.numel() or given.dtype != base.dtype:
        return None
    if given.numel() > 1 and any(given.stride()):  # pipelines expand it over the rows
        return None
    if given.device != base.device or not given.untyped_storage().data_ptr():
        return None
    if base.ndim != 1 or not all(base.stride()):  # elements that share memory can't be told apart
        return None
    offset = given.data_ptr() - base.data_ptr()
    place, rest = divmod(offset, base.stride(0) * base.element_size())
    return place if rest == 0 and 0 <= place < len(base) else None
