"""Edits as data, and the plan that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight, composed
from xattn.edits.plan import EditPlan, make_plan
from xattn.edits.timing import inside
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize

CAR = "a red car on a green lawn"


@pytest.fixture(scope="module")
def read() -> Callable[[str], Prompt]:
    from tests import tiny

    tokenizer = tiny.tokenizer()
    return lambda text: tokenize(tokenizer, text)


@pytest.fixture
def plan(read: Callable[[str], Prompt]) -> Callable[..., EditPlan]:
    return lambda *edits, prompt=CAR: make_plan(read(prompt), edits, read)


def test_a_window_covers_its_share_of_the_steps() -> None:
    assert [i for i in range(10) if inside(i, 10, (0.0, 0.4))] == [0, 1, 2, 3]
    assert [i for i in range(10) if inside(i, 10, (0.25, 0.8))] == [3, 4, 5, 6, 7]
    # 0.1 x 30 is a little more than 3 in floating point
    assert [i for i in range(30) if inside(i, 30, (0.0, 0.1))] == [0, 1, 2]
    assert [i for i in range(30) if inside(i, 30, (0.1, 0.2))] == [3, 4, 5]
    assert [i for i in range(7) if inside(i, 7, (0.0, 1.0))] == list(range(7))


def test_replace_writes_the_new_prompt(plan: Callable[..., EditPlan]) -> None:
    made = plan(
        Replace("red", "blue"),
        Replace({"red": "green", "green": "red"}),  # at once, not one after the other
        Replace("red car", "small boat"),
        Replace("a", "the"),
        Replace("a", "the", occurrence=1),
        [Replace("red", "blue"), Replace("blue", "pink")],  # one after the other
    )
    assert made.texts == [
        CAR,
        "a blue car on a green lawn",
        "a green car on a red lawn",
        "a small boat on a green lawn",
        "the red car on the green lawn",
        "a red car on the green lawn",
        "a pink car on a green lawn",
    ]


def test_replace_with_words_of_as_many_tokens_maps_one_to_one(
    plan: Callable[..., EditPlan],
) -> None:
    sibling = plan(Replace("red", "blue")).siblings[0]
    assert torch.equal(sibling.mapping, torch.eye(77))
    assert bool(sibling.follows.all())


def test_replace_with_a_longer_word_spreads_its_attention(plan: Callable[..., EditPlan]) -> None:
    made = plan(Replace("car", "skateboard"))
    sibling = made.siblings[0]
    new = sibling.prompt.positions("skateboard")
    assert len(new) > 1
    for n in new:
        assert sibling.mapping[3, n] == pytest.approx(1 / len(new))
    lawn = sibling.prompt.positions("lawn")[0]
    assert sibling.mapping[7, lawn] == 1
    # rows of probabilities keep their sum but for what falls off the end
    probs = torch.rand(5, 77).softmax(-1)
    kept = (probs @ sibling.mapping).sum(-1) + probs[:, 77 - (len(new) - 1) :].sum(-1)
    assert torch.allclose(kept, torch.ones(5))


def test_refine_keeps_partners_and_leaves_new_words_alone(plan: Callable[..., EditPlan]) -> None:
    sibling = plan(Refine("a red car on a green lawn at night")).siblings[0]
    for word in ("red", "car", "lawn"):
        (n,) = sibling.prompt.positions(word)
        assert bool(sibling.follows[n])
    for word in ("at", "night"):
        (n,) = sibling.prompt.positions(word)
        assert not bool(sibling.follows[n])
        assert not bool(sibling.schedule(0, 10)[n])


def test_the_factors_of_a_step_follow_schedule_and_weights(plan: Callable[..., EditPlan]) -> None:
    made = plan(
        [Replace("red", "blue", cross_steps=0.5, word_steps={"blue": (0.2, 0.3)}),
         Reweight({"car": -2.0})]
    )  # fmt: skip
    mix, own, active = made.cross(0, 10)
    assert active == (True,)
    assert mix[0, 1, 1] == 1
    assert own[0, 1] == 0
    assert mix[0, 2, 2] == 0  # blue follows only in step 2
    assert own[0, 2] == 1
    assert mix[0, 3, 3] == -2
    mix, own, active = made.cross(2, 10)
    assert mix[0, 2, 2] == 1
    mix, own, active = made.cross(5, 10)
    assert not bool(mix.any())
    assert own[0, 3] == -2
    assert own[0, 4] == 1
    assert active == (True,)  # the weight stays


def test_refine_after_replace_composes_the_mappings(plan: Callable[..., EditPlan]) -> None:
    edits = [Replace("car", "skateboard"), Refine("a red skateboard on a green lawn at night")]
    sibling = plan(edits).siblings[0]
    new = sibling.prompt.positions("skateboard")
    assert sibling.mapping[3, new[0]] == pytest.approx(1 / len(new))
    assert not bool(sibling.follows[sibling.prompt.positions("night")[0]])
    assert sibling.prompt.text == "a red skateboard on a green lawn at night"


@pytest.mark.parametrize(
    "edits",
    [
        [],
        Replace("red", "red"),
        Reweight({"red": 1.0}),
        Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
        [Reweight({"car": 1}), LocalBlend("car")],
    ],
)
def test_edits_that_change_nothing_are_neutral(plan: Callable[..., EditPlan], edits: Any) -> None:
    made = plan(edits)
    assert made.siblings[0].is_neutral
    for step in range(10):
        assert made.cross(step, 10)[2] == (False,)
        assert made.self_(step, 10) == (False,)
    assert "nothing is edited" in str(made)


def test_local_blend_finds_a_word_and_its_successor(plan: Callable[..., EditPlan]) -> None:
    made = plan(
        [Replace("car", "boat"), LocalBlend("car")],
        [Replace("car", "boat"), LocalBlend("boat", subtract="lawn")],
        [Refine("a red car on a green lawn at night"), LocalBlend("night")],
        [Replace("car", "boat"), LocalBlend(source_words="lawn", target_words=["boat", "red"])],
    )
    one, two, three, four = (sibling.places for sibling in made.siblings)
    assert one is not None
    assert (one.source, one.target) == ((3,), (3,))
    assert two is not None
    assert (two.source, two.target, two.source_less, two.target_less) == ((3,), (3,), (7,), (7,))
    assert three is not None
    assert (three.source, three.target) == ((), (9,))
    assert four is not None
    assert (four.source, four.target) == ((7,), (2, 3))


def test_the_plan_prints_as_a_table(plan: Callable[..., EditPlan]) -> None:
    text = str(plan(Replace("red", "blue", word_steps={"blue": 0.5}), Reweight("red", 3)))
    lines = text.splitlines()
    assert lines[0] == f"source: {CAR}"
    assert "1. Replace red -> blue: a blue car on a green lawn" in lines
    row = next(line for line in lines if "blue   " in line)
    assert row.split() == ["2", "blue", "2", "red", "[0,", "0.5)", "1"]
    assert next(line for line in lines if line.split()[:2] == ["2", "red"]).split()[-1] == "3"
    assert "<pre>" in plan(Reweight("red", 3))._repr_html_()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Replace("red"), "its successor"),
        (lambda: Replace({}), "empty word"),
        (lambda: Replace("red", " "), "empty word"),
        (lambda: Replace("red", "blue", cross_steps=1.5), r"cross_steps=1.5 .*\[0, 1\]"),
        (lambda: Replace("red", "blue", self_steps=(0.6, 0.2)), "self_steps"),
        (lambda: Replace("red", "blue", word_steps={"blue": -1}), "blue"),
        (lambda: Replace("red", "blue", aligner="other"), "aligner"),
        (lambda: Refine(""), "complete new prompt"),
        (lambda: Reweight({}), "no words"),
        (lambda: Reweight("red"), "its weight"),
        (lambda: Reweight({"red": float("nan")}), "range of float32"),
        (lambda: Reweight({"red": float("-inf")}), "range of float32"),
        (lambda: Reweight({"red": 1e39}), "'red' .* range of float32, .* got 1e[+]39; pass"),
        (lambda: Reweight("red", -(10**400)), "range of float32"),
        (lambda: Reweight("red", "3"), "'red' must be a number .* got '3'"),
        (lambda: LocalBlend(), "words or mask"),
        (lambda: LocalBlend("car", mask=torch.ones(2, 2)), "either words or mask="),
        (lambda: LocalBlend("car", threshold=1.0), "threshold"),
        (lambda: LocalBlend("car", start=2.0), "start=2.0 must be one number"),
        (lambda: LocalBlend("car", start=(0.2, 0.8)), r"start=\(0.2, 0.8\) must be one number"),
        (lambda: LocalBlend("car", threshold="0.3"), "threshold='0.3' must be a number"),
        (
            lambda: Replace("a", "b", cross_steps=None, self_steps=object()),
            "not a share of the run",
        ),
        (lambda: LocalBlend(mask=torch.ones(1, 2, 2)), "height, width"),
        (lambda: LocalBlend(mask=torch.full((2, 2), 7.0)), r"\[0, 1\]"),
        (lambda: composed([LocalBlend("a"), LocalBlend("b")]), "two LocalBlends"),
        (lambda: composed([Reweight("a", 2), Reweight("a", 3)]), "twice"),
        (
            lambda: composed(
                [Replace("a", "b", cross_steps=0.5), Reweight("c", 2, cross_steps=0.7)]
            ),
            "different cross_steps",
        ),
    ],
)
def test_bad_edits_are_refused_with_advice(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("thing", ["red", 3, ["red"], [None]])
def test_things_that_are_no_edits_are_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="not an edit"):
        composed(thing)


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        (Replace("gold", "red"), "'gold' is not in the prompt.*red, car"),
        (Replace("red", "very dark red"), "'red' \\(1\\) by 'very dark red' \\(3\\).*use Refine"),
        (Replace({"red car": "blue boat", "car": "fish"}), "overlap"),
        (Reweight("gold", 2), "'gold' is not in"),
        ([Replace("red", "blue"), Reweight("red", 2)], "'red' is not in the prompt 'a blue car"),
        (Reweight({"red car": 2, "car": 3}), "overlaps another word"),
        (Replace("red", "blue", word_steps={"red": 0.5}), "'red' is not in the prompt 'a blue"),
        (LocalBlend("car"), "LocalBlend alone"),
        ([Replace("red", "blue"), LocalBlend("gold")], "LocalBlend: .*'gold' .*nor in 'a blue"),
        (Replace("red", "blue", occurrence=1), "occurs once"),
    ],
)
def test_edits_that_do_not_fit_the_prompt_are_refused(
    plan: Callable[..., EditPlan], edits: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        plan(edits)


def test_nothing_to_edit_is_an_error(plan: Callable[..., EditPlan]) -> None:
    with pytest.raises(ValueError, match="nothing to edit"):
        plan()


def test_numpys_numbers_are_numbers(plan: Callable[..., EditPlan]) -> None:
    np = pytest.importorskip("numpy")
    ours = plan([Reweight("red", 3.0, cross_steps=0.5), LocalBlend("car", threshold=0.5)])
    half = np.float32(0.5)
    theirs = plan(
        [
            Reweight("red", np.int64(3), cross_steps=half),
            LocalBlend("car", threshold=half, start=np.float64(0.2)),
        ]
    )
    assert str(ours) == str(theirs)
    for step in range(4):
        for one, two in zip(ours.cross(step, 4), theirs.cross(step, 4), strict=True):
            assert one == two if isinstance(one, tuple) else torch.equal(one, two)
