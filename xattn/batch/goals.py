"""Goals of ``xattn.steer`` as a batch's items write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xattn.batch.lines import ItemError
from xattn.guidance.apart import Apart
from xattn.guidance.bind import Bind
from xattn.guidance.goal import Goal
from xattn.guidance.place import Place
from xattn.guidance.present import Present

Lists = str | Sequence[str]
Pairs = Mapping[str, str]
Boxes = Mapping[str, str | Sequence[float]]


def goals_of(
    present: Lists | None, bind: Pairs | None, place: Boxes | None, apart: Lists | None
) -> tuple[Goal, ...]:
    """Return the goals of an item's fields.

    >>> goals_of("mug", {"pink": "fish"}, {"star": "left"}, ["cat", "dog"])

    Raises:
        ItemError: a field is not of its form, or a goal can't be made of it.
    """
    found: list[Goal] = []
    try:
        if present is not None:
            found.append(Present(*_words("present", present)))
        found += [Bind(*pair) for pair in _pairs("bind", bind, "a noun")]
        found += [Place(word, where) for word, where in _pairs("place", place, None)]
        if apart is not None:
            found.append(Apart(*_words("apart", apart)))
    except ItemError:
        raise
    except (TypeError, ValueError) as error:
        raise ItemError(str(error)) from error
    return tuple(found)


def _words(field: str, given: Any) -> list[str]:
    words = [given] if isinstance(given, str) else given
    right = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
    if not right or not words:
        raise ItemError(f"{field} must be a word or a list of words, got {given!r:.60}")
    return list(words)


def _pairs(field: str, given: Any, value: str | None) -> list[tuple[str, Any]]:
    if given is None:
        return []
    what = value or "a side's name or [left, top, right, bottom]"
    right = isinstance(given, Mapping) and all(isinstance(key, str) for key in given)
    if not right or (value and not all(isinstance(each, str) for each in given.values())):
        raise ItemError(f"{field} must be an object, each word with {what}, got {given!r:.60}")
    return list(given.items())
