"""How captions are steered in the benchmark: goals of a scene, and settings to compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xattn.guidance.bind import Bind
from xattn.guidance.goal import Goal
from xattn.guidance.present import Present
from xattn.toyland.scenes import Scene
from xattn.toyland.world import NOUNS


@dataclass(frozen=True)
class Setting:
    """How a caption is steered: what `steer` is given, weights, options of `Present`, of all."""

    name: str = "default"
    options: dict[str, Any] = field(default_factory=dict)
    present: float = 1.0
    bind: float = 0.1
    how: dict[str, Any] = field(default_factory=dict)
    goal: dict[str, Any] = field(default_factory=dict)


DEFAULT = Setting()
SETTINGS = (
    DEFAULT,
    Setting("two rounds", {"rounds": 2}),
    Setting("Bind of weight 1", bind=1.0),
    Setting("share", {"rounds": 3}, 1.0, 1.0, {"method": "share"}, {"steps": 0.2}),
    Setting("all layers", {"layers": "*"}),
    Setting("Bind alone", present=0.0),
    Setting("as in the papers", {"move": None}, 1.0, 1.0, {"method": "excite"}, {"steps": 0.5}),
)


def positions(wanted: Scene) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the token positions of each object's colour and noun; each word is one token."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for index in range(len(wanted.things)):
        own = [(n, w.text) for n, w in enumerate(wanted.words, start=1) if w.about == index]
        noun = next(n for n, text in own if text in NOUNS)
        colour = next((n for n, text in own if text == wanted.things[index].colour), None)
        found.append((() if colour is None else (colour,), (noun,)))
    return found


def goals_of(wanted: Scene, setting: Setting) -> list[Goal]:
    """Return `Present` of all objects and a `Bind` for each colour."""
    places = positions(wanted)
    found: list[Goal] = []
    if setting.present:
        nouns = [noun for _, noun in places]
        options = {**setting.how, **setting.goal}
        found.append(Present(*nouns, weight=setting.present, prompt=wanted.caption, **options))
    if setting.bind:
        found += [
            Bind(colour, noun, weight=setting.bind, prompt=wanted.caption, **setting.goal)
            for colour, noun in places
            if colour
        ]
    return found
