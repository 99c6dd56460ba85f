"""What the benchmarks of steering and diagnosis count, by numbers that can be checked by eye."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.diagnosis import Case, auroc, fitted, interval, rates, truth
from benchmarks.drift import Features
from benchmarks.judge import Seen, Verdict
from benchmarks.steering import DEFAULT, goals_of, placed, positions
from tests.runs import prompt
from xattn.results.diagnosis import Displaced, Leaked, Merged, Neglected
from xattn.results.heatmap import HeatMap
from xattn.toyland.scenes import compose, render

HEAT = HeatMap(np.ones((2, 2)))


@pytest.fixture(scope="module")
def wanted() -> Any:
    return render(compose(14_000_003, hard=True))


def test_objects_stand_at_the_positions_of_their_own_words(wanted: Any) -> None:
    words = {word.positions[0]: word.text for word in prompt(wanted.caption).words}
    found = positions(wanted)
    said = [(words[colour[0]], words[noun[0]]) for colour, noun in found]
    assert said == [(thing.colour, thing.noun) for thing in wanted.things]
    assert len({noun for _, noun in found}) == 3  # two of a kind stand apart
    goals = goals_of(wanted, DEFAULT)
    assert [type(goal).__name__ for goal in goals] == ["Present", *["Bind"] * 3]


def test_the_area_is_the_chance_of_the_right_order() -> None:
    cases = [Case(0, 0.9, True), Case(0, 0.5, True), Case(1, 0.5, False), Case(1, 0.1, False)]
    assert auroc(cases) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert fitted(cases) == 0.5
    assert rates(cases, 0.5) == (1.0, 0.5)
    assert interval(cases)["true"] == 2
    assert np.isnan(auroc(cases[:2]))


def seen(*things: tuple[str, str, float]) -> Verdict:
    return Verdict(tuple(Seen(noun, colour, 400, x) for noun, colour, x in things), "green", False)


def test_the_judge_agrees_or_not(wanted: Any) -> None:
    first, second = (replace(wanted.things[0], noun=noun) for noun in ("star", "boat"))
    scene: Any = replace(wanted, things=(first, second))
    there = seen(("star", "red", 90.0), ("boat", "pink", 20.0))
    assert truth(Neglected("star", 1, HEAT), scene, there) is False
    assert truth(Neglected("star", 1, HEAT), scene, seen()) is True
    leak = Leaked("red", 1, HEAT, noun="boat", onto="star")
    assert truth(leak, scene, there) is True
    assert truth(replace(leak, word="pink"), scene, there) is False
    assert truth(Merged("star", 1, HEAT, other="boat"), scene, there) is False
    assert truth(Displaced("star", 1, HEAT, side="left"), scene, there) is True
    twins: Any = replace(wanted, things=(first, first))
    assert truth(Neglected("star", 1, HEAT), twins, there) is None


def test_the_drift_of_a_shifted_set_is_the_square_of_the_shift() -> None:
    one = np.random.default_rng(0).normal(size=(50, 4))
    assert Features.distance(one, one) == pytest.approx(0, abs=1e-6)
    assert Features.distance(one, one + np.array([3, 0, 4, 0])) == pytest.approx(25, rel=1e-4)
    assert Features.distance(one, 2 * one - one.mean(0)) == pytest.approx(one.var(0, ddof=1).sum())


def test_places_are_asked_of_one_object() -> None:
    for each in placed(3):
        (thing,) = each.things
        assert f"on the {thing.place_word}" in each.caption
