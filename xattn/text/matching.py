"""Word search in text as written: case, accents, white space, scripts without spaces."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

Span = tuple[int, int]
"""Position of a piece of text: (start, end) in characters."""

_JAMO = range(0x1160, 0x1200)  # Hangul vowels and finals: they compose with the character before
_SELECTORS = "\ufe0e\ufe0f"  # variation selectors (text or emoji form): nobody types them
_UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)


@dataclass(frozen=True)
class Cluster:
    """A character with its combining marks, or a run of white space; a match never splits one.

    Attributes:
        start: offset of its first character in the text.
        end: offset after its last character.
        base: its first character.
        folded: the form used for comparison: composed and casefolded; one space for white space.
    """

    start: int
    end: int
    base: str
    folded: str


def check_text(text: str, name: str = "the text") -> str:
    """Return the text unchanged if it can be encoded as UTF-8.

    Raises:
        ValueError: it contains a lone surrogate, the mark of text decoded or cut wrongly.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is {text!r}: character {error.start} is a lone surrogate, not a character; "
            "pass text decoded as UTF-8"
        ) from None
    return text


def is_space(char: str) -> bool:
    """Return whether Unicode counts a character as white space, as tokenizers do."""
    return char.isspace() and not "\x1c" <= char <= "\x1f"  # str.isspace() alone counts these


def clusters(text: str) -> list[Cluster]:
    """Return the clusters of a text in order; together they cover it."""
    borders = [i for i in range(len(text)) if i == 0 or not _joins(text[i - 1], text[i])]
    return [
        Cluster(start, end, text[start], _folded(text[start:end]))
        for start, end in pairwise([*borders, len(text)])
    ]


def chunks(text: str) -> list[list[Cluster]]:
    """Return the stretches between white space."""
    found: list[list[Cluster]] = [[]]
    for cluster in clusters(text):
        if is_space(cluster.base):
            found.append([])
        else:
            found[-1].append(cluster)
    return [chunk for chunk in found if chunk]


def words(text: str) -> list[Span]:
    """Return the stretches between white space, without surrounding punctuation and controls.

    A stretch of only punctuation, control and format characters is not a word.
    """
    found = []
    for chunk in chunks(text):
        kinds = [unicodedata.category(c.base) for c in chunk]
        inner = [c for c, kind in zip(chunk, kinds, strict=True) if kind != "Cc" and kind[0] != "P"]
        if any(kind != "Cf" for kind in (unicodedata.category(c.base) for c in inner)):
            found.append((inner[0].start, inner[-1].end))
    return found


def matches(text: str, word: str) -> Iterator[Span]:
    """Yield each whole occurrence of a word or phrase, from left to right."""
    units = clusters(text)
    hay = "".join(unit.folded for unit in units)
    needle = "".join(unit.folded for unit in clusters(word)).strip(" ")
    first: dict[int, int] = {}  # offset in hay -> the cluster that starts there
    last: dict[int, int] = {}  # offset in hay -> the cluster that ends there
    offset = 0
    for number, unit in enumerate(units):
        first[offset] = number
        offset += len(unit.folded)
        last[offset] = number
    at = hay.find(needle) if needle else -1
    while at >= 0:
        begin, stop = first.get(at), last.get(at + len(needle))
        whole = (
            begin is not None
            and stop is not None
            and (begin == 0 or _breaks(units[begin - 1], units[begin]))
            and (stop + 1 == len(units) or _breaks(units[stop], units[stop + 1]))
        )
        if whole and begin is not None and stop is not None:
            yield units[begin].start, units[stop].end
        at = hay.find(needle, at + (len(needle) if whole else 1))


def _joins(before: str, char: str) -> bool:
    """Return whether a character belongs to the cluster of the character before it."""
    if is_space(before) or is_space(char):
        return is_space(before) and is_space(char)
    return unicodedata.category(char).startswith("M") or ord(char) in _JAMO


def _folded(cluster: str) -> str:
    if is_space(cluster[0]):
        return " "
    plain = cluster.translate({ord(c): None for c in _SELECTORS}) or cluster
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", plain).casefold())


def _breaks(left: Cluster, right: Cluster) -> bool:
    """Return whether a word can end between two neighbouring clusters."""
    pair = (left.base, right.base)
    return not all(map(_in_words, pair)) or any(map(_unspaced, pair))


def _in_words(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNM"


def _unspaced(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_UNSPACED)
