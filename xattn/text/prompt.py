"""Words and phrases of a prompt, and their positions on the token axis.

Character offsets refer to the prompt as written, whatever the tokenizer changed on the way:
lower case, Unicode composition, the vectors of a textual inversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import index
from typing import Any

from xattn.text.matching import Span, matches, words
from xattn.text.tokens import Token as Token
from xattn.text.tokens import Word as Word

Words = str | int | Sequence[int]
"""A word: its text, or the positions of its tokens."""


class WordError(ValueError):
    """A word that is not in the prompt, was cut off, or covers only part of a token."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it.

    Attributes:
        text: the prompt as written.
        tokens: its own tokens in order, without start, end and padding.
        length: the length of the token axis, 77 for CLIP.
        end: the position of the end token, behind the prompt's own; padding follows it. None
            where only the embeddings are known.
        lost: the text that truncation cut off, "" where nothing was.
        clash: why the lost words have no place of their own on the axis, where it isn't that the
            model's tokens ran out; "" elsewhere.
        also: the same text as further encoders read it, in stretches of the token axis that lie
            behind this one (SD3's T5 behind its CLIPs); a word then has positions in each.

    Raises:
        ValueError: the attributes contradict each other.
    """

    text: str
    tokens: tuple[Token, ...]
    length: int
    end: int | None
    lost: str = ""
    clash: str = ""
    also: tuple[Prompt, ...] = ()

    def __post_init__(self) -> None:
        problem = _contradiction(self)
        if problem:
            raise ValueError(f"not a prompt: {problem}")

    @classmethod
    def anonymous(cls, length: int) -> Prompt:
        """Return a prompt known only by its embeddings: its words are token positions."""
        return cls(text="", tokens=(), length=length, end=None)

    @classmethod
    def clashing(cls, text: str, length: int, reason: str) -> Prompt:
        """Return a prompt without any word at a position of its own on the token axis."""
        return cls(text=text, tokens=(), length=length, end=1, lost=text, clash=reason)

    def beside(self, other: Prompt, offset: int) -> Prompt:
        """Return the prompt with a further stretch of the token axis.

        Args:
            other: the same text as another encoder reads it, counted from 0.
            offset: where its first position stands on the whole axis.

        Raises:
            ValueError: the texts differ, or the stretches overlap.
        """
        if other.end is None:
            raise ValueError("a prompt known only by its embeddings has no words to stand beside")
        return replace(self, also=(*self.also, other.moved(offset)))

    def moved(self, offset: int) -> Prompt:
        """Return the first stretch alone, with its positions moved along the token axis."""
        tokens = tuple(replace(t, position=t.position + offset) for t in self.tokens)
        end = None if self.end is None else self.end + offset
        return replace(self, tokens=tokens, length=self.length + offset, end=end, also=())

    @property
    def extent(self) -> int:
        """How many positions the whole token axis has."""
        return self.also[-1].length if self.also else self.length

    @property
    def own_positions(self) -> tuple[int, ...]:
        """The positions of the prompt's own tokens in every stretch, ascending."""
        return tuple(self.placed)

    @property
    def placed(self) -> dict[int, Token]:
        """The prompt's own tokens in every stretch, by position."""
        return {t.position: t for stretch in self._stretches for t in stretch.tokens}

    @property
    def is_anonymous(self) -> bool:
        """Whether only the embeddings are known; the words then have no text."""
        return self.end is None

    @property
    def words(self) -> tuple[Word, ...]:
        """The words the model reads in full, in order; words cut off are left out."""
        found = []
        for start, end in words(self.text):
            inside = self._read(start, end)
            # A token can hold the punctuation too ("!?" and a smiley): then so does the word.
            start = min([start, *(t.start for t in inside)])
            end = max([end, *(t.end for t in inside)])
            if inside and end <= self._cut:
                places = tuple(t.position for t in self._read(start, end))
                found.append(Word(self.text[start:end], start, end, places))
        return tuple(found)

    def find(self, word: Words, occurrence: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Return the token positions of each occurrence of a word or phrase.

        Only whole words match; case, the kind of white space and Unicode composition do not matter.
        Punctuation can surround a word or belong to it. In scripts without spaces (Chinese,
        Japanese, Thai ...) a word matches anywhere. Occurrences lost to truncation are left out:
        the model never read them.

        Args:
            word: its text, a token position, or several positions of one word.
            occurrence: which occurrence, counted from 0; all of them by default.

        Raises:
            WordError: the word is not in the prompt, or covers only part of a token. The error
                lists the words of the prompt.

        Example:
            >>> tokenize(pipe.tokenizer, "a red car and a red boat").find("red")
            ((2,), (6,))
        """
        if not isinstance(word, str):
            return self._chosen(word, [self._own(word)], occurrence)
        spans = self._chosen(word, self._spans(word), occurrence)
        return tuple(self._covered(word, span) for span in spans)

    def positions(self, word: Words, occurrence: int | None = None) -> tuple[int, ...]:
        """Return the token positions of a word, ascending; of all its occurrences by default.

        Raises:
            WordError: as in :meth:`find`.
        """
        return tuple(sorted({place for group in self.find(word, occurrence) for place in group}))

    def on_axis(self, word: Words) -> tuple[int, ...]:
        """Return token positions like ``positions``, but accept start, end and padding by number.

        Raises:
            WordError: the word is not in the prompt, or a number is outside the token axis.
        """
        if isinstance(word, str):
            return self.positions(word)
        return self._within(word, range(self.extent))

    def to_json(self) -> dict[str, Any]:
        """Return the prompt as plain JSON values; a token is [position, id, start, end]."""
        also = {"also": [stretch.to_json() for stretch in self.also]} if self.also else {}
        return {
            "text": self.text,
            "tokens": [[t.position, t.id, t.start, t.end] for t in self.tokens],
            "length": self.length,
            "end": self.end,
            "lost": self.lost,
            "clash": self.clash,
            **also,
        }

    @classmethod
    def from_json(cls, data: Any) -> Prompt:
        """Return the prompt written by :meth:`to_json`.

        Raises:
            ValueError: the data do not describe a prompt.
        """
        try:
            names = ("text", "length", "end", "lost", "clash")
            text, length, end, lost, clash = (data[key] for key in names)
            tokens = tuple(
                Token(position, number, text[start:stop], start, stop)
                for position, number, start, stop in data["tokens"]
            )
            also = tuple(cls.from_json(stretch) for stretch in data.get("also", ()))
        except KeyError as missing:
            raise ValueError(f"not a prompt: {missing} is missing") from None
        except (AttributeError, TypeError, ValueError) as wrong:
            raise ValueError(f"not a prompt: {wrong}") from None
        return cls(text, tokens, length, end, lost, clash, also)

    @property
    def _stretches(self) -> tuple[Prompt, ...]:
        return (self, *self.also)

    @property
    def _cut(self) -> int:
        """Where the text that the model sees ends: the encoder's that reads furthest."""
        return len(self.text) - min(len(stretch.lost) for stretch in self._stretches)

    @property
    def _first(self) -> int:
        """The position of the first own token (1 behind CLIP's start token)."""
        if self.tokens:
            return self.tokens[0].position
        return self.end or 0

    def _touched(self, start: int, end: int) -> list[Token]:
        return [t for t in self.tokens if t.start < end and t.end > start]

    def _read(self, start: int, end: int) -> list[Token]:
        """Return the tokens of a span in every stretch whose encoder read it to its end."""
        reading = [s for s in self._stretches if end <= len(s.text) - len(s.lost)]
        return [token for stretch in reading for token in stretch._touched(start, end)]

    def _spans(self, word: str) -> list[Span]:
        """Return the spans of a word, without those cut off; at least one."""
        if self.is_anonymous:
            raise WordError(
                f"word {word!r} cannot be found: the prompt is known only by its embeddings; pass "
                "token positions (0, 1, ...) as words, or use record(pipe, prompt=...)"
            )
        if not word.strip():
            raise WordError(f"word {word!r} is empty; {self._inventory()}")
        spans = list(matches(self.text, word))
        kept = [span for span in spans if span[1] <= self._cut]
        if kept:
            return kept
        if spans and self.clash:
            raise WordError(
                f"word {word!r} has no position of its own: {self.clash}; {self._inventory()}; "
                "pass token positions (1, 2, ...) to see them anyway"
            )
        if spans:
            where = "in each of its encoders" if self.also else f"at {self.length} tokens"
            raise WordError(
                f"word {word!r} was cut off {where}: the model reads only "
                f"up to {self.text[: self._cut][-30:]!r}; {self._inventory()}"
            )
        raise WordError(f"word {word!r} is not in the prompt {self.text!r}; {self._inventory()}")

    def _inventory(self) -> str:
        there = dict.fromkeys(word.text for word in self.words)
        if not there:
            return "it has no words"
        return f"{'the words left' if self.lost else 'its words'} are: {', '.join(there)}"

    def _covered(self, word: str, span: Span) -> tuple[int, ...]:
        inside = self._read(*span)
        for token in inside:
            if token.start < span[0] or token.end > span[1]:
                raise WordError(
                    f"word {word!r} covers only part of the token {token.text!r} in the prompt "
                    f"{self.text!r}; a token cannot be divided: use {token.text!r}"
                )
        if not inside:
            raise WordError(f"word {word!r} has no token of its own in the prompt {self.text!r}")
        return tuple(t.position for t in inside)

    def _own(self, word: int | Sequence[int]) -> tuple[int, ...]:
        """Return token positions given by number, checked."""
        if self.is_anonymous:
            return self._within(word, range(self.length))
        return self._within(word, self.own_positions)

    def _within(self, word: int | Sequence[int], there: Sequence[int]) -> tuple[int, ...]:
        given = word if isinstance(word, Sequence) else [word]
        if not all(hasattr(place, "__index__") and not isinstance(place, bool) for place in given):
            raise WordError(f"word {word!r} must be a string or token positions")
        places = tuple(dict.fromkeys(index(place) for place in given))
        if not places:
            raise WordError("word () is empty: pass at least one token position")
        for place in places:
            if place not in there:
                extent = ", ".join(f"{run[0]} to {run[-1]}" for run in _runs(there)) or "none"
                raise WordError(
                    f"token position {place} is outside the prompt {self.text!r}; "
                    f"its own tokens are at: {extent}"
                )
        return places

    def _chosen(self, word: Words, found: Sequence[Any], occurrence: int | None) -> tuple[Any, ...]:
        if occurrence is None:
            return tuple(found)
        if isinstance(occurrence, bool) or not 0 <= occurrence < len(found):
            count = "once" if len(found) == 1 else f"{len(found)} times"
            raise WordError(
                f"occurrence={occurrence} of {word!r}: it occurs {count} in the prompt "
                f"{self.text!r}; occurrences are counted from 0"
            )
        return (found[occurrence],)


def _runs(numbers: Sequence[int]) -> list[Sequence[int]]:
    """Return ascending numbers in runs that follow one another."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    edges = [0, *breaks, len(numbers)]
    return [numbers[a:b] for a, b in pairwise(edges) if b > a]


def _contradiction(prompt: Prompt) -> str | None:
    """Return what is wrong with a prompt's attributes (they may come from a file), or None."""
    text: Any = prompt.text
    lost: Any = prompt.lost
    length, end = prompt.length, prompt.end
    numbers = [n for t in prompt.tokens for n in (t.position, t.id, t.start, t.end)]
    if not all(isinstance(part, str) for part in (text, lost, prompt.clash)):
        return "text, lost and clash must be strings"
    if any(type(n) is not int for n in [*numbers, length, *([] if end is None else [end])]):
        return "positions, ids, offsets, length and end must be whole numbers"
    if length < 1:
        return f"length={length} must be at least 1"
    if end is None:
        named = text or prompt.tokens or lost
        return "a prompt without end has no text and no tokens" if named else None
    if not 0 <= end <= length:
        return f"end={end} is not on an axis of {length} tokens"
    first = end - len(prompt.tokens)
    if first < 0 or [t.position for t in prompt.tokens] != list(range(first, end)):
        return f"its tokens must stand one after the other, the last before end={end}"
    if not text.endswith(lost):
        return "lost must be the end of text"
    for t in prompt.tokens:
        if not 0 <= t.start <= t.end <= len(text) or t.text != text[t.start : t.end]:
            return f"the token at {t.position} is not text[{t.start}:{t.end}]"
    for before, stretch in pairwise((prompt, *prompt.also)):
        if stretch.text != text or stretch.also or stretch.end is None:
            return "a further stretch must be of the same text, and have none itself"
        if stretch.end - len(stretch.tokens) < before.length:
            return "a further stretch of the axis must lie behind the one before"
    return None
