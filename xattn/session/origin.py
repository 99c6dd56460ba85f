"""Where denoiser calls come from: a pipeline, or somebody's own sampling loop."""

from __future__ import annotations

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
    """What a denoiser call means for the run under way.

    Attributes:
        PASS: nothing: it is somebody else's, or guidance's own pass.
        NEXT: it is the run's next.
        FIRST: it begins a run, and ends the one under way.
        FRESH: it begins the run that was asked for while another was under way.
    """

    PASS = auto()
    NEXT = auto()
    FIRST = auto()
    FRESH = auto()


@dataclass
class Following:
    """A run under way, as far as its calls are followed.

    Attributes:
        asked: what it was asked for.
        clock: its schedule; None where a loop of one's own doesn't say.
        rows: finds the rows that follow the prompts.
        number: how many calls there were.
        timestep: the one of the step under way, where there is no clock.
        step: the step under way, where there is no clock.
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
        return None if self.clock is None else self.clock.plan

    def place(self, call: DenoiserCall) -> None:
        """Write into a call which one it is."""
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
    """Where calls come from; the session asks it what each of them means."""

    denoiser: nn.Module
    family: Family
    loop: bool

    @property
    def scheduler(self) -> Any:
        """The scheduler, where there is one."""

    def components(self) -> dict[str, nn.Module]:
        """Return the models that attend to text, by the prefix of their layers' names."""

    def watched(self, receive: Receive) -> AbstractContextManager[None]:
        """Send the pipeline's events to a session, while the block lasts."""

    def asked(self) -> Asked | None:
        """Return what a loop of one's own says at once; None where a pipeline will."""

    def turn(
        self,
        call: DenoiserCall,
        following: Following | None,
        asked: Asked | None,
        fresh: Asked | None,
    ) -> Turn:
        """Return what a call means.

        Args:
            call: the call that is about to be made.
            following: the run under way.
            asked: what a run was asked for that hasn't begun.
            fresh: what was asked for while another run was under way.

        Raises:
            RuntimeError: the call is the run's, but not the one that its schedule says, or it
                can't be told which call it is.
        """

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        """Return a run that begins with a call."""

    def facts(self) -> dict[str, Any]:
        """Return what is worth knowing about a run, as plain JSON values."""


def untimely(call: DenoiserCall, schedule: Schedule, number: int) -> str:
    """Return the sentence about a call that the schedule doesn't have."""
    expected = f"{schedule.at[number]:g}" if number < schedule.calls else "none"
    return (
        f"the denoiser was called at timestep {timestep_of(call.timestep):g} where the schedule's "
        f"next is {expected}: it is called more often than once for each, and which call is which "
        "can't be known"
    )
