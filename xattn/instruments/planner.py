"""Planner: the plan of the edits, made again on the token axis that a run turns out to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xattn.edits.kinds import Edits
from xattn.edits.plan import EditPlan, make_plan
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Planned(Protocol):
    """Something that follows a plan."""

    plan: EditPlan


class Planner(Instrument):
    """Make the plan anew at the start of a run, where only then the token axis is known.

    The length of joint attention's text depends on the call: SD3's and FLUX's on
    ``max_sequence_length``, others' on the longest prompt. It runs before what follows the plan.

    Args:
        edits: the edits, one per sibling.
        holders: what follows the plan; their ``plan`` is replaced.
        alone: whether a source without siblings is allowed.
    """

    def __init__(
        self, edits: Sequence[Edits], holders: Sequence[Planned], *, alone: bool = False
    ) -> None:
        self.edits = edits
        self.holders = holders
        self.alone = alone

    def begin(self, sampling: Sampling) -> None:
        """Plan for the run's own prompts.

        Raises:
            ValueError: a word of an edit lies beyond what the run's text encoders read.
        """
        before, tokenize = self.holders[0].plan, sampling.asked.tokenize
        if tokenize is None:
            return
        plan = make_plan(
            tokenize(before.source.text),
            self.edits,
            tokenize,
            alone=self.alone,
            length=sampling.asked.length,
            shares=before.shares,
        )
        for holder in self.holders:
            holder.plan = plan
