"""Findings from maps that are given, and the small rule for English."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.runs import make_run, prompt
from xattn.results.diagnosis import (
    Background,
    Displaced,
    Leaked,
    Merged,
    Neglected,
    Thresholds,
    diagnose,
    scores,
)
from xattn.results.heatmap import HeatMap
from xattn.results.trace import Trace
from xattn.text.pairs import phrases

TEXT = "a pink fish and a blue house"
BLANK = np.full((4, 4), 0.01)


def spot(row: int, column: int, value: float = 1.0) -> Any:
    values = BLANK.copy()
    values[row : row + 2, column : column + 2] = value
    return values


def found(text: str, maps: Mapping[str, Any], **options: Any) -> dict[type, Any]:
    """The finding of each kind, by its class."""
    read = prompt(text)
    heats = {w: HeatMap(maps[w.text]) for w in read.words if w.text in maps}
    return {type(each): each for each in diagnose(read, heats, **options)}


RIGHT = {
    "fish": spot(0, 0), "pink": spot(0, 0), "house": spot(2, 2), "blue": spot(2, 2),
}  # fmt: skip


def test_an_image_that_is_right_has_no_findings() -> None:
    assert not found(TEXT, RIGHT)


def test_a_colour_at_the_other_noun_has_leaked() -> None:
    leak = found(TEXT, {**RIGHT, "pink": spot(2, 2)})[Leaked]
    assert (leak.word, leak.noun, leak.onto, leak.sure) == ("pink", "fish", "house", True)
    assert leak.score == pytest.approx(0.5)  # as much as the house's own colour
    assert str(leak).startswith("'pink' leaks from 'fish' onto 'house' (0.")
    assert str(leak).endswith("try xattn.steer(pipe, xattn.Bind('pink', 'fish'))")


def test_a_noun_that_another_outshines_is_neglected() -> None:
    weak = {**RIGHT, "fish": 0.1 * spot(2, 2), "pink": spot(2, 2)}
    assert found(TEXT, weak)[Neglected].word == "fish"
    assert "xattn.Present('fish')" in str(found(TEXT, weak)[Neglected])


def test_a_noun_away_from_its_adjective_is_neglected_as_much_as_a_weak_one() -> None:
    away = found(TEXT, {**RIGHT, "fish": spot(2, 0)})[Neglected]
    own, usual = (8 * 0.01 + 8 * 0.01**2) / 16, (4 + 12 * 0.01**2) / 16
    median = (own + usual) / 2
    assert away.word == "fish"
    assert away.score == pytest.approx(median / (median + own))


def test_a_noun_without_an_adjective_counts_with_itself() -> None:
    weak = found("a fish and a blue house", {**RIGHT, "fish": spot(0, 0, 0.5)})[Neglected]
    own, usual = (4 * 0.25 + 12 * 0.01**2) / 16, (4 + 12 * 0.01**2) / 16
    median = (own + usual) / 2
    assert weak.score == pytest.approx(median / (median + own))


def test_nouns_in_one_place_are_merged() -> None:
    merged = found(TEXT, {**RIGHT, "house": spot(0, 0), "blue": spot(0, 0)})[Merged]
    assert (merged.word, merged.other) == ("fish", "house")
    assert merged.score == pytest.approx(1.0)


def test_a_finding_has_goals_for_its_own_occurrences() -> None:
    read = prompt("a red car on the left and a blue car")
    heats = {w: HeatMap(spot(2, 2)) for w in read.words}
    said = {type(each): [str(goal) for goal in each.goals] for each in
            scores(read, heats, phrases(read))}  # fmt: skip
    assert said == {  # of the last of each kind: the second car stands at position 10
        Neglected: ["Present((10,))"], Background: ["Present((10,))", "Place((10,), 'centre')"],
        Merged: ["Apart((3,), (10,))"], Leaked: ["Bind((9,), (10,))"],
        Displaced: ["Place((3,), 'left')"],
    }  # fmt: skip


def test_an_even_map_is_a_background() -> None:
    assert found(TEXT, {**RIGHT, "house": np.ones((4, 4))})[Background].word == "house"


def test_a_noun_on_the_wrong_side_is_displaced() -> None:
    text = "a star on the left and a boat on the right"
    maps = {"star": spot(1, 2), "boat": spot(1, 2)}
    displaced = found(text, maps)[Displaced]
    assert (displaced.word, displaced.side) == ("star", "left")
    assert "xattn.Place('star', 'left')" in str(displaced)


def test_the_most_certain_finding_comes_first_and_thresholds_count() -> None:
    read = prompt(TEXT)
    maps = {**RIGHT, "pink": spot(2, 2), "house": spot(0, 0)}
    heats = {w: HeatMap(maps[w.text]) for w in read.words if w.text in maps}
    all_of_them = scores(read, heats, phrases(read))
    assert len(all_of_them) == 2 * 2 + 1 + 2  # of each noun two, of the pair, of each adjective
    none = Thresholds(*[1.01] * 5)
    assert not diagnose(read, heats, thresholds=none)
    some = diagnose(read, heats)
    assert some[0].score == max(each.score for each in some)


def test_the_rule_for_english_says_where_it_is_not_sure() -> None:
    read = prompt("a fire truck and a small red car beside the oak table on the left at night")
    told = [
        (phrase.noun.text, [(p.adjective.text, p.sure) for p in phrase.adjectives])
        for phrase in phrases(read)
    ]
    assert told == [
        ("truck", [("fire", False)]),
        ("car", [("small", True), ("red", True)]),
        ("table", [("oak", False)]),
    ]


def test_a_comma_ends_a_phrase() -> None:
    for text in ("red car , blue boat", "red car, blue boat"):
        nouns = [p.noun.text.strip(",") for p in phrases(prompt(text))]
        assert nouns == ["car", "boat"]


def test_pairs_by_hand_take_the_place_of_the_rule() -> None:
    maps = {**RIGHT, "blue": spot(2, 2)}
    leak = found(TEXT, maps, pairs={"blue": "fish"})[Leaked]
    assert (leak.word, leak.noun, leak.onto) == ("blue", "fish", "house")
    with pytest.raises(ValueError, match="pairs: 'mug' is not a word of the prompt: a, pink"):
        found(TEXT, maps, pairs=[("blue", "mug")])


def test_a_trace_is_diagnosed_image_by_image() -> None:
    trace = Trace([make_run((TEXT, "a red car"), latent=(8, 12))])
    everything = Thresholds(*[0.0] * 5)
    assert {type(f) for f in trace.diagnose(thresholds=everything)} == {
        Neglected, Background, Merged, Leaked,
    }  # fmt: skip
    second = trace.diagnose(1, thresholds=everything)
    assert {finding.word for finding in second} == {"car"}
    assert second[0].map.array.shape == (8, 12)
