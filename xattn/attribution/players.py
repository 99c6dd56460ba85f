"""Players: the words or phrases of a prompt among which an effect is divided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from xattn.text.matching import Span, matches
from xattn.text.prompt import Prompt, WordError


@dataclass(frozen=True)
class Player:
    """A word or phrase that can be absent from a prompt.

    Attributes:
        name: its text; a word's second occurrence is "a (2)".
        positions: its places on the token axis.
        spans: its places in the text, in characters.
    """

    name: str
    positions: tuple[int, ...]
    spans: tuple[Span, ...]


def players_of(prompt: Prompt, of: str | Sequence[str]) -> tuple[Player, ...]:
    """Return the players that are asked for.

    Args:
        prompt: the prompt.
        of: "words" for each occurrence of each word, or phrases: all occurrences of one together.

    Raises:
        ValueError: a phrase is not in the prompt, two of them share a token, or there is no word.
    """
    if of == "words":
        found = _each_word(prompt)
    else:
        found = tuple(
            Player(phrase, prompt.positions(phrase), tuple(matches(prompt.text, phrase)))
            for phrase in dict.fromkeys([of] if isinstance(of, str) else of)
        )
    if not found:
        raise WordError(f"the prompt {prompt.text!r} has no words whose effect could be divided")
    taken = Counter(place for player in found for place in player.positions)
    shared = [player.name for player in found if any(taken[p] > 1 for p in player.positions)]
    if shared:
        raise WordError(
            f"{' and '.join(map(repr, shared))} share a token in the prompt {prompt.text!r}; "
            "name phrases that lie apart"
        )
    return found


def _each_word(prompt: Prompt) -> tuple[Player, ...]:
    seen: Counter[str] = Counter()
    found = []
    for word in prompt.words:
        seen[word.text] += 1
        count = seen[word.text]
        name = word.text if count == 1 else f"{word.text} ({count})"
        found.append(Player(name, word.positions, ((word.start, word.end),)))
    return tuple(found)


def without(text: str, spans: Sequence[Span]) -> str:
    """Return a text without some stretches of it, its white space in order."""
    kept, start = [], 0
    for first, last in sorted(spans):
        kept.append(text[start:first])
        start = max(start, last)
    return " ".join("".join([*kept, text[start:]]).split())
