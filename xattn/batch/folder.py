"""A batch's folder: how finished items get into it whole, and how they are read again.

::

    batch.json               what all items have in common
    parts/<group>.jsonl      index rows of a group of items: written last, so that they say "done"
    maps/<group>.safetensors their maps, a run for each item
    images/000001.png        an image for each item, and ``000001~1.png`` ... for its edits
    index.jsonl              all parts, once the batch has ended
    failures.jsonl           lines that were not drawn, and why
    .lock                    empty; locked by the run that fills the folder

A group is named by its first line and by a hash of its items, so that no other group takes its
place. An index row is of one word of one image. Everything is written aside and renamed, and
nothing holds the time or the place: equal items give equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xattn.batch.layout import (
    FAILURES,
    IMAGES,
    INDEX,
    LOCK,
    MAPS,
    PARTS,
    SETTINGS,
    VERSION,
    Row,
    path_inside,
    put_text,
    read_rows,
)
from xattn.records import atomic, files
from xattn.records.run import Run

fcntl: Any


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# -- writing


class Writer:
    """Fills a folder, a group of items at a time.

    From ``prepare`` until ``close`` the folder is this writer's alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def prepare(self, settings: Mapping[str, Any], resume: bool) -> dict[str, str]:
        """Make the folder ready; return the digest of each finished item, by casefolded name.

        Raises:
            ValueError: it holds another batch, or the same one and ``resume`` wasn't said, or
                another run is filling it.
        """
        here, path = {"version": VERSION, **settings}, self.folder / SETTINGS
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            strangers = [p.name for p in self.folder.iterdir() if not p.name.startswith(".")]
            if strangers:
                raise ValueError(
                    f"{self.folder} holds {strangers[0]!r}: choose a folder that is new or empty"
                )
        self._take()
        if path.exists():  # looked for again: another run may have begun and ended meanwhile
            self._check_same(json.loads(path.read_text(encoding="utf-8")), here, resume)
        else:
            put_text(path, json.dumps(here, indent=2, sort_keys=True) + "\n")
        for name in (PARTS, MAPS, IMAGES):
            (self.folder / name).mkdir(exist_ok=True)
        return self._tidy()

    def _take(self) -> None:
        """Locks the folder until ``close``, or until this process ends in whatever way."""
        if fcntl is None:
            return
        self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ValueError(
                f"another run is filling {self.folder}: wait for its end, or choose another folder"
            ) from None
        except OSError:  # a network's file system that has no locks
            self.close()

    def close(self) -> None:
        """Lets others fill the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_same(self, there: Any, here: Mapping[str, Any], resume: bool) -> None:
        if not resume:
            raise ValueError(
                f"{self.folder} holds a batch already: continue it with resume=True (--resume), or "
                "choose another folder"
            )
        theirs = there if isinstance(there, dict) else {}
        differs = [k for k in sorted({*here, *theirs}) if here.get(k) != theirs.get(k)]
        if differs:
            key = differs[0]
            raise ValueError(
                f"{self.folder} was begun with {key}={theirs.get(key)!r}, now it is "
                f"{here.get(key)!r}: continue with the same, or choose another folder"
            )

    def _tidy(self) -> dict[str, str]:
        """Remove what an interrupted run left; return the digests of what it finished.

        An item that lost a file is no longer finished, the others of its group still are.
        """
        for name in (INDEX, FAILURES):
            (self.folder / name).unlink(missing_ok=True)
        for path in self.folder.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
        done: dict[str, str] = {}
        kept: set[str] = set()
        for part in sorted((self.folder / PARTS).glob("*.jsonl")):
            items = self._items(part)
            whole = [rows for rows in items if self._are_there(rows)]
            if not whole:
                part.unlink()
                continue
            if len(whole) < len(items):
                put_text(part, _jsonl([row for rows in whole for row in rows]))
            kept.add(part.stem)
            done.update({str(rows[0]["name"]).casefold(): rows[0]["digest"] for rows in whole})
        for shard in (self.folder / MAPS).glob("*.safetensors"):
            if shard.stem not in kept:
                shard.unlink()
        return done

    def _items(self, part: Path) -> list[list[Row]]:
        """Return the rows of each item of a part; none where the part is damaged."""
        items: dict[str, list[Row]] = {}
        try:
            for row in read_rows(part):
                items.setdefault(row["name"], []).append(row)
        except (KeyError, TypeError, ValueError):
            return []
        return list(items.values())

    def _are_there(self, rows: Sequence[Row]) -> bool:
        """Return whether the item of some rows has all of its files."""
        try:
            paths = {row[key] for row in rows for key in ("maps", "image") if row[key]}
            return all(path_inside(self.folder, path).exists() for path in paths)
        except (KeyError, TypeError, ValueError):
            return False

    def write(
        self,
        group: str,
        runs: Sequence[Run],
        pictures: Mapping[str, Callable[[str], Any]],
        rows: Sequence[Row],
    ) -> None:
        """Write a group: images, maps, and last the index rows, which mark it as done.

        Where something can't be written, nothing of the group stays.

        Args:
            group: the name of its files.
            runs: its maps.
            pictures: what writes each image, by its path in the folder.
            rows: its index.

        Raises:
            FileExistsError: the group is finished already; it stays as it is.
        """
        part = self.folder / PARTS / f"{group}.jsonl"
        if part.exists():
            raise FileExistsError(
                f"group {group!r} is finished in {self.folder} and is never written over: resume "
                "the batch, or choose another folder"
            )
        written: list[Path] = []
        try:
            for name, save in pictures.items():
                path = path_inside(self.folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                written.append(path)
                atomic.aside(path, save)
            shard = self.folder / MAPS / f"{group}.safetensors"
            written.append(shard)
            files.save(shard, runs)
            put_text(part, _jsonl(rows))
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def done(self) -> list[str]:
        """Return the groups that are done."""
        return [path.stem for path in (self.folder / PARTS).glob("*.jsonl")]

    def finish(self, failures: Sequence[Mapping[str, Any]]) -> None:
        """Join the parts' rows into the index, and list what failed."""
        parts = sorted((self.folder / PARTS).glob("*.jsonl"))
        atomic.aside(self.folder / INDEX, partial(_join, parts))
        if failures:
            put_text(self.folder / FAILURES, _jsonl(failures))


def _join(parts: Sequence[Path], path: str) -> None:
    with open(path, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
