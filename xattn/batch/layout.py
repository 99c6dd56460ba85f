"""Names, versions and row format of a batch's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xattn.records import atomic

VERSION = 1


SETTINGS, INDEX, FAILURES = "batch.json", "index.jsonl", "failures.jsonl"


PARTS, MAPS, IMAGES = "parts", "maps", "images"


LOCK = ".lock"


Row = dict[str, Any]


def put_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    atomic.aside(path, lambda tmp: Path(tmp).write_text(text, encoding="utf-8"))


def read_rows(path: Path) -> Iterator[Row]:
    """Read the rows of a file of JSON lines, one after the other."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def path_inside(folder: Path, name: str) -> Path:
    """Return a path in the folder.

    Raises:
        ValueError: it leads out of it, by itself or by a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}")
    return path
