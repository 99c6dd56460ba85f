"""Edits as JSON, as options and as source text: what is written is what is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import xattn
from xattn.edits.codec import KINDS, from_json, from_option, share_of, texts_of, to_json, to_python
from xattn.edits.kinds import Edit, LocalBlend, Refine, Replace, Reweight
from xattn.edits.timing import window

WRITTEN: dict[str, tuple[Edit, dict[str, Any]]] = {
    "replace": (Replace({"red": "blue"}), {"replace": {"red": "blue"}}),
    "options": (
        Replace({"a": "b", "c": "d e"}, occurrence=0, aligner="reference", cross_steps=0.5),
        {"replace": {"a": "b", "c": "d e"}, "cross_steps": 0.5, "occurrence": 0,
         "aligner": "reference"},
    ),
    "refine": (
        Refine("a red car", self_steps=(0.2, 1.0), word_steps={"red": 0.3, "car": (0.0, 0.5)}),
        {"refine": "a red car", "self_steps": [0.2, 1.0],
         "word_steps": {"red": 0.3, "car": [0.0, 0.5]}},
    ),
    "reweight": (
        Reweight({"red": -1.5, "car": 2}, occurrence=1),
        {"reweight": {"red": -1.5, "car": 2}, "occurrence": 1},
    ),
    "blend": (
        LocalBlend(["car"], subtract="lawn", threshold=0.5, start=0.0),
        {"blend": ["car"], "subtract": ["lawn"], "threshold": 0.5, "start": 0.0},
    ),
    "sides": (
        LocalBlend(source_words=["car"], target_words=["boat", "sea"]),
        {"blend": [], "source_words": ["car"], "target_words": ["boat", "sea"]},
    ),
}  # fmt: skip


def same(one: Edit, other: Edit) -> bool:
    return type(one) is type(other) and vars(one) == vars(other)


@pytest.mark.parametrize("kind", WRITTEN)
def test_an_edit_survives_json(kind: str) -> None:
    edit, written = WRITTEN[kind]
    assert to_json(edit) == written
    assert next(iter(to_json(edit))) in KINDS
    assert same(from_json(json.loads(json.dumps(written))), edit)


@pytest.mark.parametrize("kind", WRITTEN)
def test_an_edit_survives_its_source_text(kind: str) -> None:
    edit, _ = WRITTEN[kind]
    assert same(eval(to_python(edit), {"xattn": xattn}), edit)


def test_a_single_word_is_written_as_an_object_of_one() -> None:
    assert to_json(Replace("red", "blue")) == to_json(Replace({"red": "blue"}))
    assert to_json(Reweight("red", 3.0)) == {"reweight": {"red": 3.0}}
    assert same(eval(to_python(Replace("a", "b")), {"xattn": xattn}), Replace("a", "b"))
    assert to_python(Reweight("red", 0.0, self_steps=0.0)) == (
        "xattn.Reweight('red', 0.0, self_steps=0.0)"
    )


def test_numbers_of_other_libraries_are_written_as_python_s() -> None:
    edit = Reweight({"red": np.float64(0.5), "car": Fraction(1, 4)}, occurrence=np.int64(1))  # type: ignore[arg-type, dict-item]
    assert json.dumps(to_json(edit)) == '{"reweight": {"red": 0.5, "car": 0.25}, "occurrence": 1}'
    assert to_python(edit) == "xattn.Reweight({'red': 0.5, 'car': 0.25}, occurrence=1)"


def test_a_mask_is_not_written() -> None:
    blend = LocalBlend(mask=np.ones((2, 2)))
    for write in (to_json, to_python):
        with pytest.raises(ValueError, match="LocalBlend with a mask"):
            write(blend)
    with pytest.raises(ValueError, match="blend has no 'mask'"):
        from_json({"blend": [], "mask": [[1.0]]})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (["replace"], "an edit must be an object"),
        ({}, "an edit has one of replace, refine, reweight, blend, got {}"),
        ({"replace": {"a": "b"}, "refine": "c"}, "an edit has one of"),
        ({"replace": {"red": 1}}, "replace must be an object of words"),
        ({"refine": "a b", "x": 1}, "refine has no 'x'"),
        ({"refine": "a b", "word_steps": [1]}, "word_steps must be"),
        ({"reweight": {"a": "much"}}, "the weight of 'a' must be a number"),
        ({"reweight": {"a": 2}, "occurrence": True}, "occurrence must be"),
        ({"blend": [1]}, "blend must be a word"),
        ({"blend": "a", "subtract": [1]}, "LocalBlend's subtract must be a text, got 1"),
        ({"blend": "a", "source_words": 1}, "LocalBlend's source_words must be a text, got 1"),
    ],
)
def test_json_that_is_not_an_edit_is_told(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        from_json(data)


@pytest.mark.parametrize(
    ("key", "text", "edit"),
    [
        ("replace", "red car=blue boat", Replace("red car", "blue boat", self_steps=0.5)),
        ("replace", "a=b=c", Replace("a=b", "c", self_steps=0.5)),
        ("refine", "a = b", Refine("a = b", self_steps=0.5)),
        ("reweight", "red=-2", Reweight({"red": -2.0}, self_steps=0.5)),
    ],
)
def test_an_option_s_text_is_read(key: str, text: str, edit: Edit) -> None:
    assert from_option(key, text, self_steps=0.5) == edit


@pytest.mark.parametrize("key", KINDS)
def test_the_example_of_an_option_can_be_read(key: str) -> None:
    edit = from_option(key, KINDS[key].example)
    assert isinstance(edit, KINDS[key].edit)


def test_an_option_s_text_that_makes_no_sense_is_told() -> None:
    with pytest.raises(ValueError, match="--replace 'red': write it as red=blue"):
        from_option("replace", "red")
    with pytest.raises(ValueError, match="--reweight 'red=x': 'x' is not a number; write it as"):
        from_option("reweight", "red=x")
    with pytest.raises(ValueError, match=r"--reweight 'red=2000': .* -1000 to 1000"):
        from_option("reweight", "red=2000")


def test_a_share_is_read_as_a_number_or_a_window() -> None:
    assert share_of("0.8") == 0.8
    assert share_of("0.2:0.8") == (0.2, 0.8)
    for text in ("", "2", "nan", "0.1:0.2:0.3", "a"):
        with pytest.raises(ValueError, match="is not a share of the run"):
            share_of(text)


def test_every_text_of_an_edit_is_found() -> None:
    edit = Replace({"a": "b"}, word_steps={"c": 0.5})
    assert {"a", "b", "c"} <= set(texts_of(edit))
    assert set(texts_of(LocalBlend("d", subtract="e"))) == {"d", "e"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Replace({"red": 1}), "a word that Replace puts in must be a text, got 1"),
        (lambda: Replace({1: "red"}), "a word that Replace takes away must be a text, got 1"),
        (lambda: Replace(["red", "blue"]), "Replace takes a word and its successor"),
        (lambda: Replace("red", 1), "a word that Replace puts in must be a text"),
        (lambda: Reweight([("red", 1)]), "Reweight takes a word and its weight"),
        (lambda: Reweight({1: 2.0}), "a word of Reweight must be a text"),
        (lambda: Refine("a", self_steps=10**400), "self_steps=1000"),
        (lambda: Refine("a", self_steps=(-(10**400), 0.5)), "is not a share of the run"),
        (lambda: window(10**400, "self_steps"), "self_steps=1000"),
        (lambda: window((0, 10**400), "self_steps"), "is not a share of the run"),
        (lambda: window(float("nan"), "self_steps"), "is not a share of the run"),
    ],
)  # fmt: skip
def test_values_of_other_types_or_sizes_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
