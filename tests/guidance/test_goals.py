"""Each goal's loss against its paper's formula, written out on maps that are given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.runs import prompt
from xattn.guidance.apart import Apart
from xattn.guidance.bind import Bind, divergences
from xattn.guidance.goal import Goal, ImageMaps, smoothed
from xattn.guidance.place import Place
from xattn.guidance.present import Present

TEXT = "a red car"  # at positions 1, 2, 3


def shown(*maps: Any) -> ImageMaps:
    """Maps of the three words."""
    return ImageMaps(prompt(TEXT, 6), (1, 2, 3), torch.tensor(maps, dtype=torch.float64))


FLAT = [[1.0, 1.0], [1.0, 1.0]]
MAPS = shown(FLAT, [[4.0, 2.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 2.0]])


def test_present_is_one_less_the_peak_after_a_softmax_over_the_tokens() -> None:
    goal = Present("car", method="excite", sharpness=2.0, sigma=0.0)
    peaks = []
    for a, red, car in [(1, 4, 1), (1, 2, 2), (1, 1, 3), (1, 1, 2)]:  # the four cells
        total = math.exp(2 * a) + math.exp(2 * red) + math.exp(2 * car)
        peaks.append(math.exp(2 * car) / total)
    assert float(goal.loss(MAPS)) == pytest.approx(1 - max(peaks))


def test_present_of_several_words_is_the_worst_of_them() -> None:
    both = float(Present("red", "car", method="excite").loss(MAPS))
    assert both == max(float(Present(word, method="excite").loss(MAPS)) for word in ("red", "car"))


def test_present_by_shares_is_what_words_have_to_themselves() -> None:
    red, car = [4 / 8, 2 / 8, 1 / 8, 1 / 8], [1 / 8, 2 / 8, 3 / 8, 2 / 8]
    shares = [
        sum(p * p / (p + q) for p, q in zip(*pair, strict=True))
        for pair in ((red, car), (car, red))
    ]
    goal = Present("red", "car", method="share", own=0.6)
    assert goal.shares(MAPS).tolist() == pytest.approx(shares)
    assert float(goal.loss(MAPS)) == pytest.approx(2 - sum(shares))
    assert float(goal.loss(shown(FLAT, FLAT, FLAT))) == pytest.approx(1.0)
    assert goal.met(0.8, 0.0)
    assert not goal.met(0.81, 0.0)
    assert float(Present("car", method="share").loss(MAPS)) == pytest.approx(
        0.0
    )  # no other noun is there


def test_joint_presence_is_what_each_noun_is_short_of_the_strongest() -> None:
    two = prompt("a red car and a blue car", 10)  # nouns at 3 and 7
    pink, strong, weak = [1.0, 0.0], [2.0, 2.0], [1.0, 4.0]
    rows = [[0.0, 0.0], pink, strong, [0.0, 0.0], [0.0, 0.0], pink, weak]
    maps = ImageMaps(two, tuple(range(1, 8)), torch.tensor(rows, dtype=torch.float64)[:, None])
    goal = Present("car", method="joint", level=0.75)  # it stands twice
    assert goal.acts(maps).tolist() == [1.0, 0.5]
    assert float(goal.loss(maps)) == pytest.approx(math.log(0.75 / 0.5))
    assert float(Present("car", method="joint", level=0.5).loss(maps)) == pytest.approx(0.0)
    assert goal.met(0.1, 0.0)
    assert not goal.met(0.11, 0.0)
    bare = prompt("a boat and a mug", 7)  # without an adjective a noun counts with itself
    maps = ImageMaps(bare, (2, 5), torch.tensor([[strong], [weak]], dtype=torch.float64))
    assert Present("boat", "mug", method="joint").acts(maps).tolist() == [4.0, 8.5]


def test_bind_takes_the_occurrence_that_the_attribute_describes() -> None:
    two = prompt("a red car and a blue car", 10)
    maps = ImageMaps(two, tuple(range(1, 8)), torch.rand(7, 2, 3, dtype=torch.float64))
    between = divergences(maps.maps)
    twin = between[5:, :5].mean()  # of "blue" and its car from the five others, a car among them
    assert float(Bind("blue", "car").loss(maps)) == pytest.approx(float(between[5, 6] - twin))


def test_smoothing_is_a_gaussian_of_three_cells_mirrored_at_the_edges() -> None:
    side = math.exp(-1 / (2 * 0.5**2))
    point = torch.zeros(5, 5, dtype=torch.float64)
    point[2, 2] = 1
    line = torch.tensor([side, 1, side], dtype=torch.float64) / (1 + 2 * side)
    torch.testing.assert_close(smoothed(point, 0.5)[1:4, 1:4], line[:, None] * line)
    assert torch.allclose(smoothed(torch.ones(3, 3), 0.5), torch.ones(3, 3))


def test_present_refines_once_at_each_threshold_and_is_met_at_the_last() -> None:
    goal = Present("car", method="excite", thresholds={0.0: 0.1, 0.2: 0.5}, steps=0.5)
    assert goal.refines(0.0, -0.1) == 0.9
    assert goal.refines(0.1, 0.0) is None
    assert goal.refines(0.25, 0.15) == 0.5
    assert goal.met(0.5, 0.9)
    assert not goal.met(0.51, 0.9)
    assert goal.most_refinements == (2, 20)


def divergence(p: list[float], q: list[float]) -> float:
    p, q = ([x / sum(r) for x in r] for r in (p, q))
    one = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return (one + sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))) / 2


def test_bind_is_near_the_noun_and_far_from_the_others() -> None:
    a, red, car = [1.0] * 4, [4.0, 2.0, 1.0, 1.0], [1.0, 2.0, 3.0, 2.0]
    want = divergence(red, car) - (divergence(red, a) + divergence(a, car)) / 2
    assert float(Bind("red", "car").loss(MAPS)) == pytest.approx(want)
    assert float(Bind("red", "car", others=()).loss(MAPS)) == pytest.approx(divergence(red, car))


def test_apart_is_the_shared_mass_of_both() -> None:
    red, car = [4 / 8, 2 / 8, 1 / 8, 1 / 8], [1 / 8, 2 / 8, 3 / 8, 2 / 8]
    want = sum(map(min, red, car)) / 2
    assert float(Apart("red", "car").loss(MAPS)) == pytest.approx(want)
    assert float(Apart("red", "car").loss(shown(FLAT, FLAT, FLAT))) == pytest.approx(0.5)
    assert Apart("red", "car", overlap=0.25).met(0.25, 0.0)


def test_place_is_the_square_of_the_mass_outside() -> None:
    left = Place("red", "left")  # holds 4 + 1 of 8
    assert float(left.loss(MAPS)) == pytest.approx((3 / 8) ** 2)
    assert float(Place("red", (0.0, 0.0, 0.25, 1.0)).loss(MAPS)) == pytest.approx((11 / 16) ** 2)
    mask = [[True, False], [False, False]]
    assert float(Place("red", mask=mask).loss(MAPS)) == pytest.approx((4 / 8) ** 2)


def test_boxdiff_is_the_inner_and_the_outer_box() -> None:
    goal = Place("red", "top", method="boxdiff")  # one cell of each is a fifth of two
    assert float(goal.loss(MAPS)) == pytest.approx((1 - 4 / 4) + 1 / 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Present(), "needs a word of the prompt"),
        (lambda: Present(" "), "needs a word of the prompt"),
        (lambda: Present("car", thresholds={2.0: 0.5}), "must map shares of the run to peaks"),
        (lambda: Present("car", level=2.0), "level=2.0 must be a number from 0 to 1"),
        (lambda: Present("car", refinements=-1), "refinements=-1 must be a whole number"),
        (lambda: Present("car", weight=math.nan), "weight=nan must be a number from 0 to 1000"),
        (lambda: Bind("red", "car", steps=1.5), "steps=1.5 must be a number from 0 to 1"),
        (lambda: Apart("car"), "needs two words of the prompt or more"),
        (lambda: Place("car"), "needs box= or mask=, one of them"),
        (lambda: Place("car", "middle"), "'middle' is not a place; the places are: left, right"),
        (lambda: Place("car", (0.5, 0, 0.2, 1)), "must be \\(left, top, right, bottom\\)"),
        (lambda: Place("car", mask=[[0, 0]]), "with something in it"),
        (lambda: Place("car", "left", method="x"), "method='x' must be"),  # type: ignore[arg-type]
    ],
)
def test_goals_check_themselves(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_goals_read_as_they_are_written() -> None:
    goals: list[Goal] = [Present("mug"), Bind("red", "car"), Place("car", "left")]
    assert [str(goal) for goal in goals] == [
        "Present('mug')", "Bind('red', 'car')", "Place('car', 'left')",
    ]  # fmt: skip
