from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from xattn.toyland.scenes import Plan, Scene, Thing, Word, caption_words, compose, scene
from xattn.toyland.world import COLOURS, GROUNDS, HELD_OUT, NOUNS, PALETTE, WORDS, ground_colour

SEEDS = range(60)


def test_a_seed_always_gives_the_same_scene() -> None:
    first, again = scene(7), scene(7)
    assert first.caption == again.caption
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert all(np.array_equal(first.masks[word], again.masks[word]) for word in first.masks)


def test_every_word_with_a_mask_stands_once_in_the_caption() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        words = drawn.caption.split()
        assert words == [word.text for word in drawn.words]
        assert set(words) <= set(WORDS)
        assert set(drawn.masks) == {word.text for word in drawn.words if word.about is not None}
        assert all(words.count(word) == 1 for word in drawn.masks)


def test_masks_have_the_size_of_the_picture_and_are_never_empty() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        assert drawn.image.size == (128, 128)
        for mask in drawn.masks.values():
            assert mask.shape == (128, 128)
            assert mask.dtype == bool
            assert mask.any()


def test_masks_part_the_picture_among_objects_ground_and_sky() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        parts = np.stack([*drawn.thing_masks, drawn.ground_mask, drawn.sky_mask])
        assert (parts.sum(0) == 1).all()


def test_masks_lie_on_what_the_words_mean() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        pixels = np.asarray(drawn.image).astype(int)
        tone = np.array(ground_colour(drawn.ground.colour, drawn.night))
        assert np.abs(np.median(pixels[drawn.ground_mask], axis=0) - tone).max() <= 4
        for thing, mask in zip(drawn.things, drawn.thing_masks, strict=True):
            body = np.abs(pixels - np.array(PALETTE[thing.colour])).max(-1) <= 4
            assert body[mask].mean() > 0.3  # the rest: windows, wheels, outline, shade
            left, top, right, bottom = thing.box
            rows, columns = np.nonzero(mask)
            assert left - 2 <= columns.min() <= columns.max() <= right + 2
            assert top - 2 <= rows.min() <= rows.max() <= bottom + 2


def test_adjectives_share_the_mask_of_their_noun() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        for word in drawn.words:
            if isinstance(word.about, int):
                noun = drawn.things[word.about].noun
                assert drawn.masks[word.text] is drawn.masks[noun]


def test_held_out_pairs_never_stand_in_a_training_scene() -> None:
    for seed in range(3000):
        assert not any((t.colour, t.noun) in HELD_OUT for t in compose(seed).things)


def test_held_out_scenes_show_a_held_out_pair_and_name_it() -> None:
    for seed in SEEDS:
        drawn = scene(seed, "held out")
        pairs = {(t.colour, t.noun) for t in drawn.things} & HELD_OUT
        assert pairs
        assert all(f"{colour} {noun}" in drawn.caption for colour, noun in pairs)


def test_every_colour_noun_and_ground_occurs() -> None:
    plans = [compose(seed) for seed in range(500)]
    assert {t.noun for plan in plans for t in plan.things} == set(NOUNS)
    assert {t.colour for plan in plans for t in plan.things} == set(COLOURS)
    assert {plan.ground.noun for plan in plans} == set(GROUNDS)
    assert {len(plan.things) for plan in plans} == {1, 2}


def test_two_objects_are_named_from_left_to_right() -> None:
    for plan in (compose(seed) for seed in range(200)):
        if len(plan.things) == 2:
            first, second = plan.things
            assert first.box[2] < second.box[0]
            nouns = [word.text for word in caption_words(plan) if word.text in NOUNS]
            assert nouns == [first.noun, second.noun]


def test_place_and_size_words_are_true() -> None:
    for plan in (compose(seed) for seed in range(600)):
        for thing in plan.things:
            left, top, right, bottom = thing.box
            if thing.place_word:
                assert ((left + right) / 2 < 64) == (thing.place_word == "left")
            if thing.size_word:
                side = ((right - left) * (bottom - top)) ** 0.5
                assert (side < 45) == (thing.size_word == "small")


def test_scenes_that_are_not_hard_stay_what_they_were() -> None:
    drawn = hashlib.sha256()
    for seed in (0, 1, 2, 3, 12_000_007):
        for pairs in ("training", "held out"):
            one = scene(seed, pairs)
            drawn.update(one.caption.encode() + one.image.tobytes())
            for word in sorted(one.masks):
                drawn.update(word.encode() + one.masks[word].tobytes())
    assert drawn.hexdigest() == "ec43fc7a2ee9c74ff062edad8c962b2c6891e9058c73b5eab1532e2c01e6d8ca"


def test_hard_scenes_show_three_objects_two_of_one_kind() -> None:
    for plan in (compose(seed, hard=True) for seed in range(300)):
        nouns = Counter(thing.noun for thing in plan.things)
        assert sorted(nouns.values()) == [1, 2]
        colours = {thing.colour for thing in plan.things} | {plan.ground.colour}
        assert len(colours) == 4
        assert not any((t.colour, t.noun) in HELD_OUT for t in plan.things)


def test_hard_scenes_repeat_by_seed() -> None:
    first, again = scene(5, hard=True), scene(5, hard=True)
    assert first.caption == again.caption
    assert first.image.tobytes() == again.image.tobytes()
    assert first.caption != scene(5).caption


def test_objects_of_hard_scenes_stand_apart_inside_the_picture() -> None:
    for plan in (compose(seed, hard=True) for seed in range(300)):
        boxes = sorted(thing.box for thing in plan.things)
        assert all(left[2] + 2.9 < right[0] for left, right in pairwise(boxes))
        assert min(box[0] for box in boxes) >= 2.9
        assert max(box[2] for box in boxes) <= 125.1
        assert all(0 < box[1] < box[3] < 128 for box in boxes)


def test_hard_captions_say_where_things_stand_or_name_them_from_left_to_right() -> None:
    said = 0
    for plan in (compose(seed, hard=True) for seed in range(200)):
        places = {thing.place_word: thing.box for thing in plan.things}
        said += len(places) == 3
        if len(places) == 3:
            assert places["left"][2] < places[""][0] < places[""][2] < places["right"][0]
        else:
            assert [t.box for t in plan.things] == sorted(t.box for t in plan.things)
        assert all((t.size_word == "small") == (_side(t.box) < 28) for t in plan.things)
    assert 60 < said < 140


def _side(box: tuple[float, float, float, float]) -> float:
    return float(((box[2] - box[0]) * (box[3] - box[1])) ** 0.5)


def test_each_occurrence_of_a_word_has_its_own_mask() -> None:
    for seed in range(40):
        drawn = scene(seed, hard=True)
        assert len(drawn.word_masks) == len(drawn.words)
        for word, mask in zip(drawn.words, drawn.word_masks, strict=True):
            if isinstance(word.about, int):
                assert mask is drawn.thing_masks[word.about]
            assert (mask is None) == (word.about is None)
        (twin,) = [noun for noun, count in _nouns(drawn).items() if count == 2]
        assert twin not in drawn.masks
        assert all(drawn.caption.split().count(word) == 1 for word in drawn.masks)
        parts = np.stack([*drawn.thing_masks, drawn.ground_mask, drawn.sky_mask])
        assert (parts.sum(0) == 1).all()


def _nouns(drawn: Scene) -> Counter[str]:
    return Counter(word.text for word in drawn.words if word.text in NOUNS)


def test_held_out_hard_scenes_show_a_held_out_pair() -> None:
    for seed in range(40):
        things = compose(seed, "held out", hard=True).things
        assert {(t.colour, t.noun) for t in things} & HELD_OUT


@pytest.mark.parametrize(
    ("changes", "caption"),
    [
        ({}, "a red car on a green lawn"),
        ({"colour_said": False}, "a car on a green lawn"),
        ({"colour": "orange"}, "an orange car on a green lawn"),
        ({"size_word": "small", "colour": "orange"}, "a small orange car on a green lawn"),
        ({"place_word": "left"}, "a red car on the left of a green lawn"),
    ],
)
def test_captions_say_what_is_there(changes: dict[str, object], caption: str) -> None:
    from dataclasses import replace

    from xattn.toyland.scenes import Ground

    thing = replace(Thing("car", "red", (20, 40, 90, 100)), **changes)
    plan = Plan(0, (thing,), Ground("lawn", "green", 40), night=False)
    assert " ".join(word.text for word in caption_words(plan)) == caption
    night = caption_words(replace(plan, night=True))
    assert night[-1] == Word("night", "sky")
