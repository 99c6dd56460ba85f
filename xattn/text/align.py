"""Token mappings between two prompts, by words and by alignment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

import torch

from xattn.text.matching import Span, chunks
from xattn.text.prompt import Prompt, WordError


def mapping_of(
    source: Prompt,
    target: Prompt,
    aligner: Literal["exact", "reference"] | None = None,
    *,
    length: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token mapping of two prompts over the whole token axis.

    Each encoder's stretch of the axis maps onto its own (SD3's CLIPs and T5); positions behind the
    last stretch, whose vectors know no text, map onto themselves.

    Args:
        source: the prompt whose attention is injected.
        target: the prompt that receives it.
        aligner: as for ``replace_mapping``; None pairs tokens as ``refine_mapping`` does.
        length: number of positions of the axis; by default as many as the prompts have.

    Returns:
        The mapping M, float32 (source tokens, target tokens), and for each target token whether
        it has no source, bool (target tokens,).
    """
    extents = (length or source.extent, length or target.extent)
    mapping, own = torch.zeros(extents), torch.ones(extents[1], dtype=torch.bool)
    pairs = list(zip(source._stretches, target._stretches, strict=True))
    starts = [0, *(s.length for s, _ in pairs[:-1])]
    for start, (one, two) in zip(starts, pairs, strict=True):
        one, two = one.moved(-start), two.moved(-start)
        part, alone = _stretch_mapping(one, two, aligner)
        rows, columns = slice(start, start + one.length), slice(start, start + two.length)
        mapping[rows, columns], own[columns] = part, alone
    behind = range(max(source.extent, target.extent), min(extents))
    mapping[behind, behind], own[list(behind)] = 1.0, False
    return mapping, own


def _stretch_mapping(
    source: Prompt, target: Prompt, aligner: Literal["exact", "reference"] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if aligner is not None:
        return replace_mapping(source, target, aligner)
    partner, has_partner = refine_mapping(source, target)
    mapping = torch.zeros(source.length, target.length)
    mapping[partner, torch.arange(target.length)] = has_partner.float()
    return mapping, ~has_partner


def replace_mapping(
    source: Prompt, target: Prompt, aligner: Literal["exact", "reference"] = "exact"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token mapping of two prompts of equal word count (Hertz et al. 2022, Replace).

    Words are separated by white space. Each word maps onto the word at the same place in the
    target: token by token where both have the same number of tokens, otherwise each source token
    onto each of the word's t target tokens with weight 1/t. This spreads the word's attention
    evenly and keeps its sum. The end token maps onto the end token; padding follows in order.

    Args:
        source: the prompt whose attention is injected.
        target: the prompt that receives it.
        aligner: "exact", or "reference" to follow the paper's code: after the last replaced word,
            position j maps onto position j. Words then shift where token counts differ, and the
            last columns can end up without attention.

    Returns:
        The mapping M, float32 (source tokens, target tokens), and for each target token whether
        it has no source, bool (target tokens,): always False with "reference".

    Raises:
        ValueError: the prompts differ in their number of words.
    """
    pairs = _word_pairs(source, target)
    mapping = torch.zeros(source.length, target.length)
    if aligner == "reference":
        _map_as_reference(mapping, [(s, t) for same, s, t in pairs if not same and s and t])
        return mapping, torch.zeros(target.length, dtype=torch.bool)
    if aligner != "exact":
        raise ValueError(f"aligner must be 'exact' or 'reference', not {aligner!r}")
    for back in range(1, min(source._first, target._first) + 1):  # padding may stand in front
        mapping[source._first - back, target._first - back] = 1.0
    for _, from_places, to_places in pairs:
        _map_word(mapping, from_places, to_places)
    source_end, target_end = _ends(source, target)
    for k in range(min(source.length - source_end, target.length - target_end)):
        mapping[source_end + k, target_end + k] = 1.0
    return mapping, ~mapping.any(dim=0)


def refine_mapping(source: Prompt, target: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each target token's partner in the source (Hertz et al. 2022, Refine).

    Global alignment of the token ids (Needleman and Wunsch: match 1, mismatch -1, gap 0). Ties are
    broken as in the paper's code, tracing back from the end: prefer an unpaired target token, then
    an unpaired source token, then a pair. Padding is paired with the padding at its own position;
    padding where the source still has words has no partner.

    Returns:
        For each target token the position of its partner, long (target tokens,), 0 without one;
        and whether it has a partner, bool (target tokens,).
    """
    source_end, target_end = _ends(source, target)
    partner = torch.zeros(target.length, dtype=torch.long)
    has_partner = torch.zeros(target.length, dtype=torch.bool)
    from_first, to_first = source._first, target._first
    pairs = [
        (one + from_first, two + to_first) for one, two in _aligned(_ids(source), _ids(target))
    ]
    front = range(1, min(from_first, to_first) + 1)  # padding may stand in front of what is
    for from_place, to_place in [*((from_first - n, to_first - n) for n in front), *pairs]:
        partner[to_place], has_partner[to_place] = from_place, True
    for place in range(max(source_end, target_end) + 1, min(source.length, target.length)):
        partner[place], has_partner[place] = place, True
    return partner, has_partner


def _ends(source: Prompt, target: Prompt) -> tuple[int, int]:
    if source.end is None or target.end is None:
        raise WordError("prompts known only by their embeddings cannot be aligned: pass their text")
    return source.end, target.end


def _word_pairs(
    source: Prompt, target: Prompt
) -> list[tuple[bool, tuple[int, ...], tuple[int, ...]]]:
    """Return for each word whether it is the same in both prompts, and its positions in both."""
    _ends(source, target)
    ours, theirs = ([(c[0].start, c[-1].end) for c in chunks(p.text)] for p in (source, target))
    old = [source.text[start:end] for start, end in ours]
    new = [target.text[start:end] for start, end in theirs]
    if len(old) != len(new):
        at = next(i for i, (a, b) in enumerate(zip_longest(old, new)) if a != b)
        raise ValueError(
            f"Replace needs the same number of words in both prompts: {source.text!r} has "
            f"{len(old)}, {target.text!r} has {len(new)}; they differ from "
            f"{' '.join(old[at:]) or 'the end'!r} against {' '.join(new[at:]) or 'the end'!r} on. "
            "Use Refine for prompts of different lengths"
        )
    return [
        (a == b, _places(source, one), _places(target, two))
        for a, b, one, two in zip(old, new, ours, theirs, strict=True)
    ]


def _places(prompt: Prompt, span: Span) -> tuple[int, ...]:
    return tuple(t.position for t in prompt._touched(*span))


def _map_word(mapping: torch.Tensor, source: Sequence[int], target: Sequence[int]) -> None:
    if len(source) == len(target):
        for from_place, to_place in zip(source, target, strict=True):
            mapping[from_place, to_place] = 1.0
        return
    for from_place in source:
        for to_place in target:
            mapping[from_place, to_place] = 1.0 / len(target)


def _map_as_reference(
    mapping: torch.Tensor, swaps: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    """Write the mapping of the paper's code for the replaced words, given in order."""
    from_place = to_place = 0
    for source, target in swaps:
        for k in range(source[0] - from_place):
            mapping[from_place + k, to_place + k] = 1.0
        _map_word(mapping, source, target)
        from_place, to_place = source[-1] + 1, target[-1] + 1
    rest = min(mapping.shape[0] - from_place, mapping.shape[1] - to_place)
    for place in range(to_place, to_place + rest):
        mapping[place, place] = 1.0


def _ids(prompt: Prompt) -> list[int]:
    """Token ids up to the end token, which aligns only with itself."""
    end = [] if prompt.end == prompt.length else [-2]
    return [t.id for t in prompt.tokens] + end


def _aligned(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs of a global alignment, from the end to the beginning."""
    # best[i][j]: score of the first i source tokens against the first j target tokens.
    best = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, old in enumerate(source, start=1):
        for j, new in enumerate(target, start=1):
            pair = best[i - 1][j - 1] + (1 if old == new else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], pair)
    pairs = []
    i, j = len(source), len(target)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs
