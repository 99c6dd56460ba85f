"""Whether words are in a picture, and whether a text fits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xattn.maps import presence, select
from xattn.records.run import Run
from xattn.toyland.calibration import calibration_of

PRESENT = 0.5


class Presence(float):
    """How likely a word is in the picture, in [0, 1]: a number that says what it is.

    Attributes:
        word: the word.
        calibrated: whether it is a probability, fitted for this model, or only a score: the
            share of the word's own change that the picture asks for.
    """

    word: str
    calibrated: bool

    def __new__(cls, value: float, word: str, calibrated: bool) -> Presence:
        """Return a presence."""
        made = super().__new__(cls, value)
        made.word, made.calibrated = word, calibrated
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Presence, (float(self), self.word, self.calibrated)

    def __str__(self) -> str:
        note = "" if self.calibrated else " (a score, not a probability: not calibrated)"
        return f"{float(self):.2f}{note}"


@dataclass(frozen=True)
class Verdict:
    """Whether a text fits a picture.

    Attributes:
        kind: "match" where every word is present by 0.5 or more, "mismatch" where none is,
            else "partly".
        words: the text's words with their presence, the most present first.
    """

    kind: Literal["match", "partly", "mismatch"]
    words: tuple[Presence, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The words that are not present."""
        return tuple(each.word for each in self.words if each < PRESENT)

    def __iter__(self) -> Iterator[Presence]:
        return iter(self.words)

    def __str__(self) -> str:
        room = max(len(each.word) for each in self.words)
        lines = [f"{each.word:<{room}}  {float(each):.2f}" for each in self.words]
        note = "" if self.words[0].calibrated else ", by scores, not probabilities: not calibrated"
        return "\n".join([f"{self.kind}{note}", *lines])


def presences(run: Run) -> dict[str, Presence]:
    """Return the presence of every word that a probe asked for, by the word.

    Raises:
        ValueError: the run is not a probe with ``presence=True``.
    """
    found: dict[str, Any] | None = run.info.get("presence")
    if not found:
        raise ValueError(
            "presence was not asked for: probe the picture with presence=True, and with the words "
            "that the text does not have in also="
        )
    grams, alongs = (torch.tensor(found[name]).double() for name in ("products", "along"))
    features = presence.features(grams, alongs)
    known = calibration_of(found["fingerprint"], run.info["levels"])
    values = features[:, 0].clamp(0, 1) if known is None else known.probability(features)
    return {
        word: Presence(float(value), word, known is not None)
        for word, value in zip(found["words"], values, strict=True)
    }


def presence_of(run: Run, word: str, image: int) -> Presence:
    """Return the presence of a word.

    Raises:
        ValueError: nothing was asked, or not this word.
    """
    select.image_index(run, image)
    known = presences(run)
    named = {each.casefold(): each for each in known}
    if word.casefold() not in named:
        raise ValueError(
            f"the presence of {word!r} was not asked for; that of these words was: "
            f"{', '.join(known)}; probe again with it in also="
        )
    return known[named[word.casefold()]]


def verdict_of(run: Run, image: int) -> Verdict:
    """Return whether the run's prompt fits its picture.

    Raises:
        ValueError: nothing was asked, or the prompt has no word of its own.
    """
    select.image_index(run, image)
    known = presences(run)
    wanted: Sequence[str] = run.info["presence"]["text"]
    if not wanted:
        raise ValueError("the prompt has no word whose presence was asked; ask trace.presence")
    words = sorted((known[word] for word in wanted), key=lambda each: -each)
    there = sum(each >= PRESENT for each in words)
    kind: Literal["match", "partly", "mismatch"] = "partly"
    if there in (0, len(words)):
        kind = "match" if there else "mismatch"
    return Verdict(kind, tuple(words))
