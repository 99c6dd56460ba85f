from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.judge import Seen, Verdict
from benchmarks.tally import Tally
from benchmarks.toyland_pictures import score_hard
from xattn.toyland.scenes import Scene, scene

SCENE = scene(14_000_000, hard=True)


def seen(drawn: Scene) -> Verdict:
    """What a perfect judge sees of a scene."""
    things = [
        Seen(t.noun, t.colour, int(mask.sum()), (t.box[0] + t.box[2]) / 2)
        for t, mask in zip(drawn.things, drawn.thing_masks, strict=True)
    ]
    return Verdict(tuple(sorted(things, key=lambda t: -t.area)), drawn.ground.colour, drawn.night)


def scores(found: Verdict) -> dict[str, float]:
    tally = Tally()
    score_hard(SCENE, found, tally)
    return {name: figure["mean"] for name, figure in tally.summary().items()}


def test_a_true_picture_has_everything_right() -> None:
    found = scores(seen(SCENE))
    assert set(found.values()) == {1.0}
    assert len(found) == 8


def test_twins_in_exchanged_colours_are_both_there_but_out_of_order() -> None:
    verdict = seen(SCENE)
    first, second, *_ = [t for t in verdict.things if _twins(t.noun)]
    others = [t for t in verdict.things if t not in (first, second)]
    things = [replace(first, x=second.x), replace(second, x=first.x), *others]
    found = scores(replace(verdict, things=tuple(things)))
    assert found["everything asked"] == 1
    assert found["order from left to right"] == 0
    assert found["everything, and nothing else"] == 0


def _twins(noun: str) -> bool:
    return [thing.noun for thing in SCENE.things].count(noun) == 2


def test_one_object_answers_for_one_that_was_asked() -> None:
    verdict = seen(SCENE)
    twin = next(t for t in verdict.things if _twins(t.noun))
    left = tuple(t for t in verdict.things if t is not twin)
    found = scores(replace(verdict, things=left))
    assert found["object"] == pytest.approx(2 / 3)
    assert found["everything asked"] == 0
    assert found["number of objects"] == 0


def test_a_wrong_colour_is_still_an_object() -> None:
    verdict = seen(SCENE)
    colours = {thing.colour for thing in verdict.things}
    other = next(c for c in ("red", "green", "blue", "pink") if c not in colours)
    things = (replace(verdict.things[0], colour=other), *verdict.things[1:])
    found = scores(replace(verdict, things=things))
    assert found["object"] == 1
    assert found["object in its colour"] == pytest.approx(2 / 3)
    assert found["everything asked"] == 0


def test_an_object_too_many_spoils_only_the_strictest_count() -> None:
    verdict = seen(SCENE)
    found = scores(replace(verdict, things=(*verdict.things, Seen("car", "red", 300, 5.0))))
    assert found["everything asked"] == 1
    assert found["everything, and nothing else"] == 0
