from __future__ import annotations

import pytest
import torch

from tests import fakes
from tests.runs import prompt
from xattn.edits.kinds import Replace, Reweight
from xattn.edits.plan import EditPlan, make_plan
from xattn.instruments.pivots import Pivots

AFTER = [torch.full((1, 4, 2, 2), float(step)) for step in (10, 20, 30)]


def planned(*edits: object) -> EditPlan:
    return make_plan(prompt("a red car", 6), edits, lambda text: prompt(text, 6))  # type: ignore[arg-type]


def begun(pivots: Pivots) -> Pivots:
    texts = pivots.plan.texts
    pivots.begin(fakes.sampling(texts))
    return pivots


def test_the_source_is_set_to_its_pivot_and_edits_are_left_alone() -> None:
    pivots = begun(Pivots(planned(Replace("red", "blue")), AFTER))
    found = pivots.after_step(1, torch.zeros(2, 4, 2, 2))
    assert torch.equal(found[:1], AFTER[1])
    assert not found[1].any()


def test_siblings_that_change_nothing_are_held_like_the_source() -> None:
    plan = planned([], Reweight("red", 1.0), Reweight("red", 2.0))
    found = begun(Pivots(plan, AFTER)).after_step(0, torch.zeros(4, 4, 2, 2))
    assert [bool((row == 10).all()) for row in found] == [True, True, True, False]


def test_all_rows_are_held_before_the_start_of_edits() -> None:
    pivots = begun(Pivots(planned(Replace("red", "blue")), AFTER, start=0.5, pinned=False))
    assert (pivots.after_step(0, torch.zeros(2, 4, 2, 2)) == 10).all()
    assert not pivots.after_step(1, torch.zeros(2, 4, 2, 2)).any()


def test_a_run_of_other_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="inverted in 2 steps, and this run has 3"):
        begun(Pivots(planned(Replace("red", "blue")), AFTER[:2]))
