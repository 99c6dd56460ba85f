"""Goals on the command line."""

from __future__ import annotations

import pytest

from xattn.cli import UsageError
from xattn.cli.goals import goals_of
from xattn.cli.record import steered
from xattn.guidance.place import Place
from xattn.guidance.steering import Steering


def test_options_become_goals() -> None:
    goals = goals_of(["mug", "cat"], ["pink=fish"], ["star=left", "car=0,0,0.5,1"], ["cat=dog"])
    assert [str(goal) for goal in goals] == [
        "Present('mug', 'cat')", "Bind('pink', 'fish')", "Place('star', 'left')",
        "Place('car', (0.0, 0.0, 0.5, 1.0))", "Apart('cat', 'dog')",
    ]  # fmt: skip
    assert not goals_of(None, None, None, None)


@pytest.mark.parametrize(
    ("bind", "place", "message"),
    [
        ("pink", None, "--bind 'pink' must be two words with = between them: pink=fish"),
        (None, "star=middle", "'middle' is not a place"),
        (None, "star=0,x,1,1", "could not convert"),
        (None, "star=0,1,0.5,0.5", "must be .left, top, right, bottom."),
    ],
)
def test_what_is_not_a_goal_is_a_wrong_call(
    bind: str | None, place: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        goals_of(None, [bind] if bind else None, [place] if place else None, None)


def test_what_was_steered_is_in_the_json() -> None:
    assert steered(Steering([])) == {}
    steering = Steering([Place("car", "left")])
    steering.losses = {"Place('car', 'left')": [(0.5,), (0.25,)]}
    steering.gradient_steps = 3
    assert steered(steering) == {
        "steering": {"gradient_steps": 3, "losses": {"Place('car', 'left')": [0.5, 0.25]}}
    }
