"""What went wrong in an image, by its heat maps alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn.guidance.apart import Apart
from xattn.guidance.bind import Bind
from xattn.guidance.goal import Goal
from xattn.guidance.place import Place
from xattn.guidance.present import Present
from xattn.records.run import Layer
from xattn.results.heatmap import HeatMap
from xattn.text.pairs import Pair, Phrase, phrases
from xattn.text.prompt import Prompt, Word

Pairs = Sequence[tuple[str, str]] | Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """One thing that seems wrong in an image.

    Attributes:
        word: the word it is about.
        score: how strongly the maps say so, in [0, 1]; findings begin at their threshold.
        map: the word's heat map.
        sure: whether the words' roles in the prompt are certain.
        about: the words it is about, with their positions: the noun; the adjective, its noun and
            the other one; both nouns.
    """

    word: str
    score: float
    map: HeatMap = field(repr=False, compare=False)
    sure: bool = True
    about: tuple[Word, ...] = field(default=(), repr=False, compare=False, kw_only=True)

    def __str__(self) -> str:
        doubt = "" if self.sure else " (if it is an adjective and a noun)"
        return f"{self._what()} ({self.score:.2f}){doubt}: {self._advice()}"

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The goals of ``xattn.steer`` that ask for what is missing, of just these occurrences.

        >>> with xattn.steer(pipe, *trace.diagnose()[0].goals):
        ...     image = pipe(prompt).images[0]
        """
        raise NotImplementedError

    def _what(self) -> str:
        raise NotImplementedError

    def _advice(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Neglected(Finding):
    """A noun that acts little where its adjective acts: it may be missing in the image.

    How much a noun acts is the mean over cells of its map times that of the adjective next to it,
    or times itself where it has none. The score is m / (m + that), m the median of the prompt's
    nouns: 1/2 for a noun that acts as much as most.
    """

    @property
    def goals(self) -> tuple[Goal, ...]:
        """``Present`` of the noun."""
        return (Present(_places(self)[0]),)

    def _what(self) -> str:
        return f"{self.word!r} is neglected"

    def _advice(self) -> str:
        return f"try another seed, or xattn.steer(pipe, xattn.Present({self.word!r}))"


@dataclass(frozen=True)
class Leaked(Finding):
    """An adjective that acts at another noun more than at its own.

    The score is its share of the attention to adjectives at the other noun's place, beside that
    noun's own adjectives. Where the other noun has none: the share of its attention at the two
    nouns' places that the other has. Less where it acts less than on average.

    Attributes:
        noun: its own noun.
        onto: the noun that it acts at.
    """

    noun: str = ""
    onto: str = ""

    @property
    def goals(self) -> tuple[Goal, ...]:
        """``Bind`` of the adjective and its own noun."""
        adjective, noun, _ = _places(self)
        return (Bind(adjective, noun),)

    def _what(self) -> str:
        return f"{self.word!r} leaks from {self.noun!r} onto {self.onto!r}"

    def _advice(self) -> str:
        return f"try xattn.steer(pipe, xattn.Bind({self.word!r}, {self.noun!r}))"


@dataclass(frozen=True)
class Merged(Finding):
    """Two nouns that act in the same place.

    The score is the mass that their maps share, each times the map of the adjective next to it and
    divided by its sum.

    Attributes:
        other: the other noun.
    """

    other: str = ""

    @property
    def goals(self) -> tuple[Goal, ...]:
        """``Apart`` of both nouns."""
        return (Apart(*_places(self)),)

    def _what(self) -> str:
        return f"{self.word!r} and {self.other!r} share one place"

    def _advice(self) -> str:
        return f"try xattn.steer(pipe, xattn.Apart({self.word!r}, {self.other!r}))"


@dataclass(frozen=True)
class Background(Finding):
    """A noun that acts everywhere alike; the score is its normalized entropy."""

    @property
    def goals(self) -> tuple[Goal, ...]:
        """``Present`` of the noun, and ``Place`` in the centre."""
        (noun,) = _places(self)
        return (Present(noun), Place(noun, "centre"))

    def _what(self) -> str:
        return f"{self.word!r} acts all over the image, like a background"

    def _advice(self) -> str:
        return (
            f"say where it is, or try xattn.steer(pipe, xattn.Present({self.word!r}), "
            f"xattn.Place({self.word!r}, 'centre'))"
        )


@dataclass(frozen=True)
class Displaced(Finding):
    """A noun on the other side than its prompt says; the score is its mass on the wrong side.

    Attributes:
        side: where the prompt puts it: "left" or "right".
    """

    side: str = ""

    @property
    def goals(self) -> tuple[Goal, ...]:
        """``Place`` of the noun where the prompt says."""
        return (Place(_places(self)[0], self.side),)

    def _what(self) -> str:
        return f"{self.word!r} is not on the {self.side}"

    def _advice(self) -> str:
        return f"try xattn.steer(pipe, xattn.Place({self.word!r}, {self.side!r}))"


def _places(finding: Finding) -> list[tuple[int, ...]]:
    """Return the token positions of the words a finding is about."""
    return [word.positions for word in finding.about]


@dataclass(frozen=True)
class Thresholds:
    """The score at which each kind of finding begins.

    Those of ``Neglected``, ``Leaked`` and ``Displaced`` are fitted on training captions of the
    bundled contextual model by ``python -m benchmarks.diagnosis``: there the sum of true positive
    and true negative rates is largest, and four of five right ones raise nothing. That of
    ``Merged`` is from less training of it, after which more went wrong. Other models can differ.
    """

    neglected: float = 0.64
    leaked: float = 0.4
    merged: float = 0.23
    background: float = 0.985
    displaced: float = 0.42


def in_decoder(layer: Layer) -> bool:
    """Return whether a layer is in a UNet's decoder, whose maps tell the most of what is there."""
    return all("up_blocks" in name for name in layer.members)


def diagnose(
    prompt: Prompt,
    maps: Mapping[Word, HeatMap],
    pairs: Pairs | None = None,
    thresholds: Thresholds | None = None,
) -> list[Finding]:
    """Return what seems wrong, the most certain first.

    Args:
        prompt: the image's prompt.
        maps: the heat map of each word of the prompt.
        pairs: (adjective, noun), in place of those that the rule for English finds.
        thresholds: the score at which each kind of finding begins.
    """
    least = thresholds or Thresholds()
    told = phrases(prompt) if pairs is None else _told(prompt, pairs)
    scored = scores(prompt, maps, told)
    limits = {
        Neglected: least.neglected, Leaked: least.leaked, Merged: least.merged,
        Background: least.background, Displaced: least.displaced,
    }  # fmt: skip
    found = [each for each in scored if each.score >= limits[type(each)]]
    return sorted(found, key=lambda each: limits[type(each)] - each.score)


def scores(prompt: Prompt, maps: Mapping[Word, HeatMap], told: Sequence[Phrase]) -> list[Finding]:
    """Return every possible finding with its score, whether or not it is high."""
    nouns = [phrase.noun for phrase in told if phrase.noun in maps]
    heats = {noun: np.asarray(maps[noun], dtype=np.float64) for noun in nouns}
    acts = {p.noun: _acts(p, heats, maps) for p in told if p.noun in heats}
    usual = float(np.median([each.mean() for each in acts.values()])) if acts else 0.0
    found: list[Finding] = []
    for noun in nouns:
        heat, own = maps[noun], float(acts[noun].mean())
        missing = usual / (usual + own) if usual + own > 0 else 1.0
        found.append(Neglected(noun.text, missing, heat, about=(noun,)))
        found.append(Background(noun.text, float(heat.entropy), heat, about=(noun,)))
        side = _side(prompt, noun, nouns)
        if side:
            wrong = _wrong(heats[noun], side)
            found.append(Displaced(noun.text, wrong, heat, True, side, about=(noun,)))
    for i, one in enumerate(nouns):
        for two in nouns[i + 1 :]:
            shared = float(np.minimum(_mass(acts[one]), _mass(acts[two])).sum())
            found.append(Merged(one.text, shared, maps[one], True, two.text, about=(one, two)))
    return found + _leaks(told, heats, maps)


def _acts(
    phrase: Phrase, heats: Mapping[Word, NDArray[Any]], maps: Mapping[Word, HeatMap]
) -> NDArray[Any]:
    """Return a noun's map times that of the adjective next to it, or times itself."""
    near = [pair.adjective for pair in phrase.adjectives if pair.adjective in maps]
    noun = heats[phrase.noun]
    beside = np.asarray(maps[near[-1]], dtype=np.float64) if near else noun
    both: NDArray[Any] = noun * beside
    return both


def _wrong(heat: NDArray[Any], side: str) -> float:
    """Return the share of a map's mass on the other side."""
    left = float(heat[:, : heat.shape[1] // 2].sum() / max(heat.sum(), 1e-12))
    return 1 - left if side == "left" else left


def _leaks(
    told: Sequence[Phrase], heats: Mapping[Word, NDArray[Any]], maps: Mapping[Word, HeatMap]
) -> list[Finding]:
    """Return, for each adjective and each noun that isn't its own, how much it acts there."""
    known = [phrase for phrase in told if phrase.noun in heats]
    pairs = [pair for phrase in known for pair in phrase.adjectives if pair.adjective in maps]
    found: list[Finding] = []
    for pair in pairs:
        heat = np.asarray(maps[pair.adjective], dtype=np.float64)
        for other in known:
            if other.noun is pair.noun:
                continue
            place = _mass(heats[other.noun])
            there = float((heat * place).sum())
            rivals = [maps[p.adjective] for p in other.adjectives if p.adjective in maps]
            if rivals:
                rest = max(float((np.asarray(rival) * place).sum()) for rival in rivals)
            else:
                rest = float((heat * _mass(heats[pair.noun])).sum())
            acts = min(1.0, there / max(float(heat.mean()), 1e-12))
            score = acts * there / max(rest + there, 1e-12)
            about = (pair.adjective, pair.noun, other.noun)
            found.append(
                Leaked(
                    pair.adjective.text, score, maps[pair.adjective], pair.sure, pair.noun.text,
                    other.noun.text, about=about,
                )
            )  # fmt: skip
    return found


def _mass(heat: NDArray[Any]) -> NDArray[Any]:
    return heat / max(float(heat.sum()), 1e-12)


def _side(prompt: Prompt, noun: Word, nouns: Sequence[Word]) -> str:
    """Return "left" or "right" if "on the left" follows the noun before another noun does."""
    later = [other.start for other in nouns if other.start > noun.start]
    stretch = prompt.text[noun.end : min(later, default=len(prompt.text))].casefold().split()
    for place in ("left", "right"):
        if place in stretch and stretch[:2] == ["on", "the"]:
            return place
    return ""


def _told(prompt: Prompt, pairs: Pairs) -> tuple[Phrase, ...]:
    """Return phrases of pairs that were given, and of the nouns that the rule finds.

    Raises:
        ValueError: a word of a pair is not one word of the prompt.
    """
    given = list(pairs.items()) if isinstance(pairs, Mapping) else list(pairs)
    known = {word.text.casefold(): word for word in reversed(prompt.words)}
    by_noun: dict[Word, list[Pair]] = {}
    for adjective, noun in given:
        for text in (adjective, noun):
            if text.casefold() not in known:
                words = ", ".join(word.text for word in prompt.words)
                raise ValueError(f"pairs: {text!r} is not a word of the prompt: {words}")
        one, two = known[adjective.casefold()], known[noun.casefold()]
        by_noun.setdefault(two, []).append(Pair(one, two, True))
    others = [p.noun for p in phrases(prompt) if p.noun not in by_noun]
    found = [Phrase(noun, tuple(each)) for noun, each in by_noun.items()]
    found += [Phrase(noun, ()) for noun in others]
    return tuple(sorted(found, key=lambda phrase: phrase.noun.start))
