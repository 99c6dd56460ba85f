"""Scenes of Toyland: a picture, its caption, and the exact mask of every word that has one.

A scene is made in three steps: :func:`compose` draws lots from a seed, :func:`caption_words` says
what there is, :func:`render` paints it. Objects without place words are named from left to right.
Now and then a caption leaves out a colour or the ground, so that these have to be guessed; a hard
scene's caption leaves out nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from .drawing import ASPECT, draw_ground, draw_object, reduce
from .world import COLOURS, GROUNDS, HARD_SIZES, HELD_OUT, NOUNS, SIDE, SIZES

Mask = npt.NDArray[np.bool_]
Pairs = Literal["training", "held out"]

MARGIN, GAP = 3.0, 3.0  # pixels beside and between the objects of a hard scene


@dataclass(frozen=True)
class Thing:
    """One object: what it is, where it stands, and which of its words the caption says."""

    noun: str
    colour: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    mirrored: bool = False
    size_word: str = ""
    place_word: str = ""
    colour_said: bool = True


@dataclass(frozen=True)
class Ground:
    """What the objects stand on."""

    noun: str
    colour: str
    horizon: int
    """Row of pixels where the ground begins."""
    said: bool = True
    colour_said: bool = True


@dataclass(frozen=True)
class Word:
    """One word of a caption; `about` is the index of an object, "ground", "sky", or None."""

    text: str
    about: int | Literal["ground", "sky"] | None = None


@dataclass(frozen=True)
class Scene:
    """A picture of Toyland whose truth is known.

    `masks` has one `(128, 128)` bool array for each word of the caption that names something
    visible: the noun and its attributes share the object's mask, "night" has the sky's. Words
    such as "a" and "on" have none. In a hard scene a word may stand twice, for two objects
    ("a red car and a blue car"): such a word is not in `masks`. `word_masks` is parallel to
    `words` and has the mask of each occurrence, or None.
    """

    seed: int
    caption: str
    words: tuple[Word, ...]
    things: tuple[Thing, ...]
    ground: Ground
    night: bool
    image: Image.Image = field(repr=False)
    masks: dict[str, Mask] = field(repr=False)
    thing_masks: tuple[Mask, ...] = field(repr=False)
    ground_mask: Mask = field(repr=False)
    sky_mask: Mask = field(repr=False)
    word_masks: tuple[Mask | None, ...] = field(repr=False)


@dataclass(frozen=True)
class Plan:
    """What a scene will show, before it is painted."""

    seed: int
    things: tuple[Thing, ...]
    ground: Ground
    night: bool


def _pick_colour(noun: str, taken: set[str], pairs: Pairs, rng: np.random.Generator) -> str:
    wanted = [
        colour
        for colour in COLOURS
        if colour not in taken and ((colour, noun) in HELD_OUT) == (pairs == "held out")
    ]
    return wanted[int(rng.integers(len(wanted)))]


def _place(
    noun: str, side: float, centre: float, horizon: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Give the box of an object of a size, standing on the ground about a column."""
    width = side * math.sqrt(ASPECT[noun])
    height = side / math.sqrt(ASPECT[noun])
    left = min(max(centre - width / 2, 3.0), SIDE - 3.0 - width)
    bottom = float(rng.uniform(max(horizon + 22, height + 4), SIDE - 5))
    return left, bottom - height, left + width, bottom


def _one(ground: Ground, pairs: Pairs, rng: np.random.Generator) -> tuple[Thing, ...]:
    noun = NOUNS[int(rng.integers(len(NOUNS)))]
    colour = _held_or_free(noun, {ground.colour}, pairs, rng)
    size_word = str(rng.choice(["", "small", "large"], p=[0.7, 0.15, 0.15]))
    side = float(rng.uniform(*SIZES[size_word]))
    place_word = str(rng.choice(["", "left", "right"], p=[0.7, 0.15, 0.15]))
    centre = rng.uniform(30, 98)
    if place_word:
        centre = rng.uniform(20, 40) if place_word == "left" else rng.uniform(88, 108)
    box = _place(noun, side, float(centre), ground.horizon, rng)
    return (
        Thing(noun, colour, box, bool(rng.random() < 0.5), size_word, place_word,
              pairs == "held out" or bool(rng.random() > 0.08)),
    )  # fmt: skip


def _held_or_free(noun: str, taken: set[str], pairs: Pairs, rng: np.random.Generator) -> str:
    """Pick a colour; a noun without a held-out pair falls back to the usual colours."""
    if pairs == "held out" and not any(n == noun and c not in taken for c, n in HELD_OUT):
        pairs = "training"
    return _pick_colour(noun, taken, pairs, rng)


def _two(ground: Ground, pairs: Pairs, rng: np.random.Generator) -> tuple[Thing, ...]:
    first, second = rng.choice(len(NOUNS), size=2, replace=False)
    taken = {ground.colour}
    things = []
    for index, pick in enumerate((first, second)):
        noun = NOUNS[int(pick)]
        colour = _held_or_free(noun, taken, pairs, rng)
        taken.add(colour)
        side = min(float(rng.uniform(40, 52)), 57 / math.sqrt(ASPECT[noun]))
        half = side * math.sqrt(ASPECT[noun]) / 2
        centre = float(rng.uniform(4 + half, 62 - half)) + (64 if index else 0)
        box = _place(noun, side, centre, ground.horizon, rng)
        said = pairs == "held out" or bool(rng.random() > 0.05)
        things.append(Thing(noun, colour, box, bool(rng.random() < 0.5), colour_said=said))
    return tuple(things)


def _lefts(widths: Sequence[float], rng: np.random.Generator) -> list[float]:
    """Draw the left edges of objects that stand side by side, at least `GAP` pixels apart."""
    spare = SIDE - 2 * MARGIN - sum(widths) - GAP * (len(widths) - 1)
    before = spare * np.sort(rng.random(len(widths)))
    passed = np.cumsum([0.0, *(width + GAP for width in widths[:-1])])
    return [MARGIN + float(x) for x in before + passed]


def _boxes(
    nouns: Sequence[str], sides: Sequence[float], horizon: int, rng: np.random.Generator
) -> list[tuple[float, float, float, float]]:
    """Draw boxes `(left, top, right, bottom)` for objects of these sizes, left to right."""
    widths = [side * math.sqrt(ASPECT[noun]) for noun, side in zip(nouns, sides, strict=True)]
    room = SIDE - 2 * MARGIN - GAP * (len(widths) - 1)
    shrink = min(1.0, room / sum(widths))
    widths = [shrink * width for width in widths]
    boxes = []
    for noun, width, left in zip(nouns, widths, _lefts(widths, rng), strict=True):
        height = width / ASPECT[noun]
        bottom = float(rng.uniform(max(horizon + 22, height + 4), SIDE - 5))
        boxes.append((left, bottom - height, left + width, bottom))
    return boxes


def _three(ground: Ground, pairs: Pairs, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Draw three objects, two of one kind; all colours differ, the ground's included.

    Half of these scenes name them from left to right; the others in any order, and say which
    stand on the left and on the right.
    """
    twin, other = (NOUNS[int(pick)] for pick in rng.choice(len(NOUNS), size=2, replace=False))
    nouns = [twin, twin, other]
    rng.shuffle(nouns)
    size_words = [str(rng.choice(["", "small"], p=[0.6, 0.4])) for _ in nouns]
    sides = [float(rng.uniform(*HARD_SIZES[word])) for word in size_words]
    boxes = _boxes(nouns, sides, ground.horizon, rng)
    taken = {ground.colour}
    things = []
    for noun, word, box in zip(nouns, size_words, boxes, strict=True):
        colour = _held_or_free(noun, taken, pairs, rng)
        taken.add(colour)
        things.append(Thing(noun, colour, box, bool(rng.random() < 0.5), word))
    if rng.random() < 0.5:
        return tuple(things)
    places = ("left", "", "right")
    placed = [replace(t, place_word=p) for t, p in zip(things, places, strict=True)]
    return tuple(placed[int(index)] for index in rng.permutation(3))


def compose(seed: int, pairs: Pairs = "training", hard: bool = False) -> Plan:
    """Decide what the scene of a seed shows; "held out" shows pairs that training never does."""
    if hard:
        return _compose_hard(seed, pairs)
    rng = np.random.default_rng([seed, 8, int(pairs == "held out")])
    while True:
        name = list(GROUNDS)[int(rng.integers(len(GROUNDS)))]
        colours = GROUNDS[name]
        colour = colours[int(rng.choice(len(colours), p=[0.6, 0.2, 0.2]))]
        said = pairs == "held out" or bool(rng.random() > 0.08)
        ground = Ground(
            name, colour, int(rng.integers(36, 49)), said, said and bool(rng.random() > 0.1)
        )
        things = (_one if rng.random() < 0.6 else _two)(ground, pairs, rng)
        night = bool(rng.random() < 0.2)
        if pairs == "training" or any((t.colour, t.noun) in HELD_OUT for t in things):
            return Plan(seed, things, ground, night)


def _compose_hard(seed: int, pairs: Pairs) -> Plan:
    rng = np.random.default_rng([seed, 9, int(pairs == "held out")])
    while True:
        name = list(GROUNDS)[int(rng.integers(len(GROUNDS)))]
        colours = GROUNDS[name]
        colour = colours[int(rng.choice(len(colours), p=[0.6, 0.2, 0.2]))]
        ground = Ground(name, colour, int(rng.integers(36, 49)))
        things = _three(ground, pairs, rng)
        night = bool(rng.random() < 0.2)
        if pairs == "training" or any((t.colour, t.noun) in HELD_OUT for t in things):
            return Plan(seed, things, ground, night)


def caption_words(plan: Plan) -> tuple[Word, ...]:
    """Say what a plan shows, word by word, each with what it is about."""
    words: list[Word] = []
    for index, thing in enumerate(plan.things):
        if index:
            words.append(Word("and"))
        words.append(Word("a"))
        if thing.size_word:
            words.append(Word(thing.size_word, index))
        if thing.colour_said:
            words.append(Word(thing.colour, index))
        words.append(Word(thing.noun, index))
        if thing.place_word:
            words += [Word("on"), Word("the"), Word(thing.place_word, index)]
    place = plan.things[0].place_word if len(plan.things) == 1 else ""
    if plan.ground.said:
        words += [Word("of" if place else "on"), Word("a")]
        if plan.ground.colour_said:
            words.append(Word(plan.ground.colour, "ground"))
        words.append(Word(plan.ground.noun, "ground"))
    if plan.night:
        words += [Word("at"), Word("night", "sky")]
    return tuple(
        Word("an") if word.text == "a" and after.text == "orange" else word
        for word, after in zip(words, [*words[1:], Word("")], strict=True)
    )


def render(plan: Plan) -> Scene:
    """Paint a plan. About 10 ms."""
    rng = np.random.default_rng([plan.seed, 1])
    canvas = draw_ground(plan.ground.noun, plan.ground.colour, plan.ground.horizon, plan.night, rng)
    masks = []
    free = np.ones((SIDE, SIDE), dtype=bool)
    for thing in plan.things:
        layer = draw_object(thing.noun, thing.colour, thing.box, thing.mirrored)
        canvas.paste(layer, mask=layer)
        mask = np.asarray(reduce(layer.getchannel("A"))) > 127
        masks.append(mask)
        free &= ~mask
    below = np.arange(SIDE)[:, None] >= plan.ground.horizon
    ground_mask, sky_mask = free & below, free & ~below
    words = caption_words(plan)
    about: dict[int | str, Mask] = {"ground": ground_mask, "sky": sky_mask}
    about.update(enumerate(masks))
    word_masks = tuple(None if w.about is None else about[w.about] for w in words)
    return Scene(
        seed=plan.seed,
        caption=" ".join(word.text for word in words),
        words=words,
        things=plan.things,
        ground=plan.ground,
        night=plan.night,
        image=reduce(canvas),
        masks=_by_text(words, word_masks),
        thing_masks=tuple(masks),
        ground_mask=ground_mask,
        sky_mask=sky_mask,
        word_masks=word_masks,
    )


def _by_text(words: Sequence[Word], masks: Sequence[Mask | None]) -> dict[str, Mask]:
    """Mask of each word that stands once among those that have a mask."""
    counts = Counter(word.text for word in words if word.about is not None)
    return {
        word.text: mask
        for word, mask in zip(words, masks, strict=True)
        if mask is not None and counts[word.text] == 1
    }


def scene(seed: int, pairs: Pairs = "training", *, hard: bool = False) -> Scene:
    """Return the scene of a seed: always the same picture, caption and masks.

    Training uses seeds from 0 to below ten million, so from there on a scene is unseen. Hard
    scenes have three objects, two of one kind in different colours, some of them small, and place
    words in half of the captions; seeds of hard and other scenes have nothing in common.

    >>> scene(3).caption
    'a large purple boat on an orange lawn'
    """
    return render(compose(seed, pairs, hard))
