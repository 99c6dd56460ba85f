"""A printed edit plan: which token follows which, and when."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from xattn.text.prompt import Prompt

if TYPE_CHECKING:
    from xattn.edits.plan import Sibling, Window

# -- the table ------------------------------------------------------------------------------------


def table_of(sibling: Sibling, source: Prompt, *, joint: bool = False) -> str:
    """Return one edit of a plan as a table: a line per token, padding in groups."""
    head = "; ".join(map(str, sibling.edits)) or "no edit"
    lines = [f"{head}: {sibling.prompt.text}"]
    if sibling.is_neutral:
        return "\n".join([*lines, "   nothing is edited: a plain run of its prompt"])
    layout = "the image's queries and keys follow" if joint else "self-attention follows"
    lines.append(f"   {layout} the source in {_span(sibling.self_window)}")
    if sibling.blend is not None:
        blend = sibling.blend
        lines.append(f"   {blend}: above {blend.threshold:g} of the maximum, from {blend.start:g}")
    attention = "text's columns" if joint else "cross-attention"
    rows = [("token", "", "takes from", attention, "weight")]
    texts = _texts(sibling.prompt)
    for position, text in texts.items():
        rows.append((f"{position}", text, *_row(sibling, position, source)))
    rest = [p for p in range(len(sibling.weights)) if p not in texts]
    for _, group in groupby(rest, key=lambda p: (_shift(sibling, p), _row(sibling, p, source)[1:])):
        run = list(group)
        first, last = run[0], run[-1]
        place = f"{first}" if first == last else f"{first}-{last}"
        shift = _shift(sibling, first)
        origin = "itself" if shift is None else f"{first + shift}"
        if shift is not None and first != last:
            origin = f"{first + shift}-{last + shift}"
        name = "start" if last == 0 else "end, padding"
        rows.append((place, f"({name})", origin, *_row(sibling, first, source)[1:]))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("   " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(sibling: Sibling, position: int, source: Prompt) -> tuple[str, str, str]:
    weight = f"{float(sibling.weights[position]):g}"
    sources = sibling.mapping[:, position].nonzero().flatten().tolist()
    if not bool(sibling.follows[position]):
        return "itself", "own", weight
    texts = _texts(source)
    parts = []
    for s in sources:
        share = float(sibling.mapping[s, position])
        parts.append(f"{s} {texts.get(s, '')}".strip() + ("" if share == 1 else f" x {share:.2g}"))
    return " + ".join(parts) or "nothing", _span(sibling.windows[position]), weight


def _texts(prompt: Prompt) -> dict[int, str]:
    return {position: token.text for position, token in prompt.placed.items()}


def _shift(sibling: Sibling, position: int) -> int | None:
    sources = sibling.mapping[:, position].nonzero().flatten().tolist()
    if not bool(sibling.follows[position]) or len(sources) != 1:
        return None
    return int(sources[0]) - position


def _span(span: Window) -> str:
    return "no step" if span[0] >= span[1] else f"[{span[0]:g}, {span[1]:g})"
