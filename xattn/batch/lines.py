"""The lines of a batch's file: JSON, read strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ItemError(ValueError):
    """An item that can't be drawn, and why."""


def lines_of(path: Path) -> Iterator[bytes]:
    """Return a file's lines, one at a time."""
    with path.open("rb") as file:
        yield from file


def decoded(data: bytes) -> Any:
    """Return what a line of JSON says.

    Raises:
        ItemError: it is not UTF-8 or not JSON, or names something twice.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ItemError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ItemError(f"not JSON: {error.msg} at character {error.colno}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ItemError(f"{twice!r} is given twice")
    return found


def _constant(name: str) -> Any:
    raise ItemError(f"{name} is not a number in JSON; give a finite one, or leave the field out")
