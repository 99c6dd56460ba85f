"""Checks of what an edit is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any


def check_texts(name: str, given: Iterable[Any]) -> None:
    """Raise ValueError if something is not a text."""
    for one in given:
        if not isinstance(one, str):
            raise ValueError(f"{name} must be a text, got {one!r} ({type(one).__name__})")


def check_occurrence(given: object) -> None:
    """Raise ValueError unless it is a whole number from 0, or None."""
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
        raise ValueError(
            f"occurrence must be a whole number from 0, or None for every one, got {given!r}"
        )


def check_heads(given: object) -> None:
    """Raise ValueError unless it names heads of layers, or is None."""
    if given is None:
        return
    right = isinstance(given, Mapping) and any(len(heads) for heads in given.values())
    numbers = [n for heads in given.values() for n in heads] if isinstance(given, Mapping) else []
    if not right or not all(isinstance(n, Integral) and int(n) >= 0 for n in numbers):
        raise ValueError(
            "heads must be heads of layers by the layers' names, such as "
            f'{{"mid_block.attentions.0.transformer_blocks.0.attn2": [0, 2]}}, got {given!r}'
        )
