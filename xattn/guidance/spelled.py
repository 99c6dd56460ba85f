"""Goals as people write them: words, and pairs with = between them."""

from __future__ import annotations

from collections.abc import Sequence

from xattn.guidance.apart import Apart
from xattn.guidance.bind import Bind
from xattn.guidance.goal import Goal
from xattn.guidance.place import Place
from xattn.guidance.present import Present

Texts = Sequence[str] | None


def goals_of(
    present: Texts = None,
    bind: Texts = None,
    place: Texts = None,
    apart: Texts = None,
    *,
    name: str = "{}",
) -> list[Goal]:
    """Return the goals that texts ask for; all words of ``present`` in one.

    Args:
        present: words.
        bind: attributes and their nouns, "pink=fish".
        place: words and places, "star=left", or "star=0,0,0.5,1" (left, top, right, bottom).
        apart: two words each, "cat=dog".
        name: how an error calls a field, "--{}" for an option.

    Raises:
        ValueError: a text is not of its form, or a place is not one.
    """
    found: list[Goal] = [Present(*present)] if present else []
    found += [Bind(*_pair(name.format("bind"), text, "pink=fish")) for text in bind or ()]
    for text in place or ():
        word, where = _pair(name.format("place"), text, "star=left")
        found.append(Place(word, _box(where)))
    found += [Apart(*_pair(name.format("apart"), text, "cat=dog")) for text in apart or ()]
    return found


def _pair(field: str, text: str, example: str) -> tuple[str, str]:
    word, equals, other = text.partition("=")
    if not equals or not word.strip() or not other.strip():
        raise ValueError(f"{field} {text!r} must be two words with = between them: {example}")
    return word.strip(), other.strip()


def _box(where: str) -> str | tuple[float, ...]:
    if "," not in where:
        return where
    return tuple(float(number) for number in where.split(","))
