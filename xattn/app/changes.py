"""Changes that a visitor asks for, and the edits that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xattn.edits.kinds import Edit, Refine, Replace, Reweight
from xattn.text.matching import matches


@dataclass(frozen=True)
class Change:
    """What becomes of a word: another text (or none), another weight.

    Attributes:
        text: what stands in its place.
        weight: how strong it is; 1 as it was.
    """

    text: str
    weight: float = 1.0


# -- from changes to edits


def make_edits(
    text: str,
    spans: Sequence[tuple[str, int, int]],
    changes: Mapping[int, Change],
    added: str = "",
    **timing: Any,
) -> list[Edit]:
    """Return the edits that make of a prompt what its changed words say.

    Words that become as many words are a ``Replace``, which keeps the layout best; otherwise the
    whole new prompt is a ``Refine``.
    """
    target, starts = _changed(text, spans, changes)
    if added.strip():
        target = f"{target.rstrip()} {added.strip()}"
    if not target.strip():
        raise ValueError("no word is left of the prompt; to remove one, give it the weight 0")
    swaps = [
        (n, spans[n][0], change.text.strip())
        for n, change in sorted(changes.items())
        if change.text.strip() != spans[n][0]
    ]
    found: list[Edit] = []
    if added.strip() or any(len(old.split()) != len(new.split()) for _, old, new in swaps):
        found.append(Refine(target, **timing))
    elif swaps:
        found += _replaces(text, spans, swaps, timing)
    for n, change in sorted(changes.items()):
        word = change.text.strip()
        if change.weight == 1 or not word:
            continue
        places = [start for start, _ in matches(target, word)]
        occurrence = places.index(starts[n]) if len(places) > 1 and starts[n] in places else None
        found.append(Reweight({word: float(change.weight)}, occurrence=occurrence, **timing))
    return found


def _changed(
    text: str, spans: Sequence[tuple[str, int, int]], changes: Mapping[int, Change]
) -> tuple[str, dict[int, int]]:
    """Return the new prompt, and where each changed word begins in it."""
    pieces, starts, at, length = [], {}, 0, 0
    for n, (word, start, end) in enumerate(spans):
        new = changes[n].text.strip() if n in changes else word
        before = text[at:start]
        if not new:
            before = before[:-1] if before.endswith(" ") else before
        starts[n] = length + len(before)
        pieces += [before, new]
        length += len(before) + len(new)
        at = end
    return "".join([*pieces, text[at:]]).rstrip(), starts


def _replaces(
    text: str,
    spans: Sequence[tuple[str, int, int]],
    swaps: Sequence[tuple[int, str, str]],
    timing: Mapping[str, Any],
) -> list[Edit]:
    if all(len(list(matches(text, old))) == 1 for _, old, _ in swaps):
        if len(swaps) == 1:
            return [Replace(swaps[0][1], swaps[0][2], **timing)]
        return [Replace({old: new for _, old, new in swaps}, **timing)]
    found: list[Edit] = []
    for n, old, new in reversed(swaps):  # the last first: what is before it keeps its count
        places = [start for start, _ in matches(text, old)]
        which = places.index(spans[n][1]) if spans[n][1] in places else None
        found.append(Replace(old, new, occurrence=which, **timing))
    return found
