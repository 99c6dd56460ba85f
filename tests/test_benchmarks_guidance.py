"""What the benchmarks of steering and diagnosis count, by numbers that can be checked by eye."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.diagnosis import Case, auroc, fitted, interval, nameless, rates, truth
from benchmarks.drift import Features
from benchmarks.judge import Seen, Verdict
from benchmarks.steering import placed
from benchmarks.steering_goals import DEFAULT, goals_of, positions
from benchmarks.tally import Tally
from benchmarks.teaching import DRAWN, compared, markdown
from tests.runs import prompt
from xattn.results.diagnosis import Displaced, Leaked, Merged, Neglected
from xattn.results.heatmap import HeatMap
from xattn.text.prompt import Word
from xattn.toyland.scenes import Word as SceneWord
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
    assert fitted(cases, reject=0.8) == 0.9
    assert rates(cases, 0.5) == (1.0, 0.5)
    assert interval(cases)["true"] == 2
    assert np.isnan(auroc(cases[:2]))


def seen(*things: tuple[str, str, float]) -> Verdict:
    return Verdict(tuple(Seen(noun, colour, 400, x) for noun, colour, x in things), "green", False)


def test_the_judge_agrees_or_not() -> None:
    wanted: Any = scene_of(("red", "star"), ("pink", "boat"), ("blue", "star"))
    there = seen(("star", "red", 90.0), ("boat", "blue", 20.0))
    words = {(w.text, w.about): Word(w.text, 0, 1, (n,)) for n, w in enumerate(wanted.words, 1)}
    star, boat, twin = words["star", 0], words["boat", 1], words["star", 2]
    assert truth(Neglected("star", 1, HEAT, about=(star,)), wanted, there) is False
    assert truth(Neglected("star", 1, HEAT, about=(twin,)), wanted, there) is True
    strange = seen(("star", "white", 90.0))  # which of the two, nobody knows
    assert truth(Neglected("star", 1, HEAT, about=(twin,)), wanted, strange) is None
    leak = Leaked("blue", 1, HEAT, about=(words["blue", 2], twin, boat))
    assert truth(leak, wanted, there) is True
    assert (
        truth(Leaked("red", 1, HEAT, about=(words["red", 0], star, boat)), wanted, there) is False
    )
    assert truth(Merged("star", 1, HEAT, about=(star, boat)), wanted, there) is False
    assert truth(Merged("star", 1, HEAT, about=(star, twin)), wanted, there) is True
    displaced = Displaced("star", 1, HEAT, side="left", about=(star,))
    assert truth(displaced, wanted, there) is True


def test_something_in_the_colour_of_a_missing_object_may_be_it() -> None:
    wanted: Any = scene_of(("red", "star"), ("pink", "boat"))
    boat = Neglected("boat", 1, HEAT, about=(Word("boat", 0, 1, (6,)),))
    soft = seen(("star", "red", 90.0), ("fish", "pink", 20.0))
    assert truth(boat, wanted, soft) is True
    assert nameless(boat, wanted, soft)
    assert not nameless(boat, wanted, seen(("star", "red", 90.0), ("fish", "red", 20.0)))
    twins: Any = scene_of(("red", "star"), ("red", "boat"))  # the star's own red is not the boat's
    assert not nameless(boat, twins, seen(("star", "red", 90.0)))


def scene_of(*things: tuple[str, str]) -> SimpleNamespace:
    """A caption of things with their colours, as far as the truth asks for it."""
    words = [SceneWord(text, about) for about, pair in enumerate(things) for text in ("a", *pair)]
    objects = [SimpleNamespace(colour=colour, noun=noun) for colour, noun in things]
    return SimpleNamespace(words=words, things=objects)


def test_the_drift_of_a_shifted_set_is_the_square_of_the_shift() -> None:
    one = np.random.default_rng(0).normal(size=(50, 4))
    assert Features.distance(one, one) == pytest.approx(0, abs=1e-6)
    assert Features.distance(one, one + np.array([3, 0, 4, 0])) == pytest.approx(25, rel=1e-4)
    assert Features.distance(one, 2 * one - one.mean(0)) == pytest.approx(one.var(0, ddof=1).sum())


def test_places_are_asked_of_one_object() -> None:
    for each in placed(3):
        (thing,) = each.things
        assert f"on the {thing.place_word}" in each.caption


def test_teaching_is_compared_word_by_word_and_caption_by_caption() -> None:
    def measured(iou: list[float], right: list[float]) -> dict[str, Any]:
        tally = Tally()
        for name in DRAWN:
            for seed, value in enumerate(right):
                tally.add(name, value, seed)
        maps = {"iou": iou, "pointing": [1.0, 1.0], "scene": [0.0, 1.0]}
        return {"maps": maps, "drawing": tally}

    found = compared(measured([0.2, 0.4], [1.0, 0.0]), measured([0.4, 0.8], [1.0, 1.0]))
    assert found["before"]["iou"]["mean"] == pytest.approx(0.3)
    assert found["change"]["iou"]["mean"] == pytest.approx(0.3)
    assert found["change"]["object"]["mean"] == pytest.approx(0.5)
    assert "| iou |" in markdown({"model": "unet", "steps": 1, **found})
