"""Concepts as one text: maps of a pass whose prompt lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from xattn.records.concepts import BACKGROUND
from xattn.records.run import MemoryStore, Run
from xattn.text.prompt import Prompt

FORM = "listed"
_BETWEEN = " "


def listing(names: Sequence[str]) -> str:
    """Return the text that lists concepts, the background left out."""
    return _BETWEEN.join(name for name in names if name != BACKGROUND)


def listed_run(run: Run, names: Sequence[str]) -> Run | None:
    """Return a run over concepts of the run whose prompt lists them.

    Args:
        run: a probe's, of ``listing(names)``, its maps in memory.
        names: the concepts.

    Returns:
        the mean over each concept's tokens; None where the text was cut off before the last one.
    """
    wanted = [name for name in names if name != BACKGROUND]
    places = [_rows(run, span) for span in _spans(wanted)]
    if not all(places):
        return None
    tensors = []
    for n in range(len(run.layers)):
        maps = run.maps(n)  # (steps, images, heads, tokens, height, width)
        tensors.append(torch.stack([maps[:, :, :, rows].mean(3) for rows in places], 3))
    count = len(wanted)
    return replace(
        run,
        prompts=(Prompt.anonymous(count),),
        prompt_of=(0,) * len(run.prompt_of),
        positions=tuple(range(count)),
        store=MemoryStore(tuple(tensors)),
        info={"concepts": wanted, "form": FORM},
        images=[],
        affinity=None,
        concepts={},
        outputs={},
    )


def _spans(names: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each concept stands in their listing, in characters."""
    spans, at = [], 0
    for name in names:
        spans.append((at, at + len(name)))
        at += len(name) + len(_BETWEEN)
    return spans


def _rows(run: Run, span: tuple[int, int]) -> list[int]:
    """Return the rows of the tokens that stand in a part of the prompt."""
    start, stop = span
    inside = {
        position
        for word in run.prompt(0).words
        if start <= word.start < stop
        for position in word.positions
    }
    return [row for row, position in enumerate(run.positions) if position in inside]
