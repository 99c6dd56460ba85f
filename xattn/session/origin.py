"""The origin of denoiser calls: a pipeline, or a custom sampling loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from torch import nn

from xattn.models.family import DenoiserCall, Family
from xattn.session.clock import Clock, Schedule, timestep_of
from xattn.session.events import Receive
from xattn.session.rows import RowFinder
from xattn.session.sampling import Asked


class Turn(Enum):
    """The meaning of a denoiser call for the current run.

    Attributes:
        PASS: not part of it: another pipeline's, or guidance's own pass.
        NEXT: the run's next call.
        FIRST: it begins a run, and ends the current one.
        FRESH: it begins the run announced during the current one.
    """

    PASS = auto()
    NEXT = auto()
    FIRST = auto()
    FRESH = auto()


@dataclass
class Following:
    """State of following a run's calls.

    Attributes:
        asked: the run's prompts and embeddings.
        clock: its clock; None in a custom loop without a scheduler.
        rows: finder of the rows that follow the prompts.
        number: number of calls so far.
        timestep: timestep of the current step, without a clock.
        step: the current step, without a clock.
    """

    asked: Asked
    clock: Clock | None
    rows: RowFinder
    number: int = 0
    timestep: float = 0.0
    step: int = 0

    @property
    def schedule(self) -> Schedule | None:
        """The run's schedule."""
        return None if self.clock is None else self.clock.schedule

    def place(self, call: DenoiserCall) -> None:
        """Write a call's number and step into it."""
        call.number = self.number
        if self.schedule is not None:
            steps = self.schedule.steps
            call.step = steps[self.number]
            call.begins_step = self.number == 0 or steps[self.number - 1] != call.step
            call.ends_step = self.schedule.ends_step(self.number)
            return
        timestep = timestep_of(call.timestep)
        call.begins_step = self.number == 0 or timestep != self.timestep
        if call.begins_step and self.number:
            self.step += 1
        call.step, self.timestep = self.step, timestep


class Origin(Protocol):
    """The origin of denoiser calls; it tells the session what each call means."""

    denoiser: nn.Module
    family: Family
    loop: bool

    @property
    def scheduler(self) -> Any:
        """The scheduler, or None."""

    def components(self) -> Sequence[tuple[str, nn.Module]]:
        """Return the models with text attention, and the prefix of their layers' names each.

        Denoisers that take turns in one run have the same prefix, "".
        """

    def watched(self, receive: Receive) -> AbstractContextManager[None]:
        """Send the pipeline's events to a session inside the block."""

    def asked(self) -> Asked | None:
        """Return a custom loop's prompts; None for a pipeline, which announces them later."""

    def turn(
        self,
        call: DenoiserCall,
        following: Following | None,
        asked: Asked | None,
        fresh: Asked | None,
    ) -> Turn:
        """Return what a call means.

        Args:
            call: the call about to be made.
            following: the current run.
            asked: the prompts of a run not yet begun.
            fresh: prompts announced during another run.

        Raises:
            RuntimeError: the call belongs to the run, but not at this point of its schedule, or
                its place cannot be determined.
        """

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        """Return a run beginning with a call."""

    def facts(self) -> dict[str, Any]:
        """Return facts about a run, as plain JSON values."""


def untimely(call: DenoiserCall, schedule: Schedule, number: int) -> str:
    """Return the error message for a call outside the schedule."""
    expected = f"{schedule.at[number]:g}" if number < schedule.calls else "none"
    return (
        f"the denoiser was called at timestep {timestep_of(call.timestep):g} where the schedule's "
        f"next is {expected}: calls cannot be matched to steps if it is called more than "
        "once for each"
    )
