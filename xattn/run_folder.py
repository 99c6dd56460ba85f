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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

from PIL import Image

from xattn import files
from xattn.runs import Run
from xattn.trace import Trace

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

VERSION = 1
SETTINGS, INDEX, FAILURES = "batch.json", "index.jsonl", "failures.jsonl"
PARTS, MAPS, IMAGES = "parts", "maps", "images"
LOCK = ".lock"

Row = dict[str, Any]


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
                f"{self.folder} holds a batch already: continue it with resume, or choose another "
                "folder"
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
            for row in _rows(part):
                items.setdefault(row["name"], []).append(row)
        except (KeyError, TypeError, ValueError):
            return []
        return list(items.values())

    def _are_there(self, rows: Sequence[Row]) -> bool:
        """Return whether the item of some rows has all of its files."""
        try:
            paths = {row[key] for row in rows for key in ("maps", "image") if row[key]}
            return all(_inside(self.folder, path).exists() for path in paths)
        except (KeyError, TypeError, ValueError):
            return False

    def write(
        self,
        group: str,
        runs: Sequence[Run],
        pictures: Mapping[str, Callable[[str], Any]],
        rows: Sequence[Row],
    ) -> None:
        """Writes a group: images, maps, then the index rows that say that it is done.

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
                path = _inside(self.folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                written.append(path)
                files.aside(path, save)
            shard = self.folder / MAPS / f"{group}.safetensors"
            written.append(shard)
            files.save(shard, runs)
            put_text(part, _jsonl(rows))
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def done(self) -> list[str]:
        """Gives the groups that are done."""
        return [path.stem for path in (self.folder / PARTS).glob("*.jsonl")]

    def finish(self, failures: Sequence[Mapping[str, Any]]) -> None:
        """Joins the parts' rows into the index, and lists what failed."""
        parts = sorted((self.folder / PARTS).glob("*.jsonl"))
        files.aside(self.folder / INDEX, partial(_join, parts))
        if failures:
            put_text(self.folder / FAILURES, _jsonl(failures))


def put_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    files.aside(path, lambda tmp: Path(tmp).write_text(text, encoding="utf-8"))


def _join(parts: Sequence[Path], path: str) -> None:
    with open(path, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


# -- reading


@dataclass(frozen=True)
class StoredRun:
    """An item of a batch: what was asked, what the index says of it, and its maps on demand.

    Attributes:
        folder: of the batch.
        rows: its rows of the index, one for each word of each image.
    """

    folder: Path
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The item's name."""
        return str(self.rows[0]["name"])

    @property
    def line(self) -> int:
        """The line that it was in, from 1."""
        return int(self.rows[0]["line"])

    @property
    def prompt(self) -> str:
        """Its prompt; the source's, where there are edits."""
        return str(self.rows[0]["prompt"])

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.rows[0]["seed"])

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the index has of it, each once."""
        return tuple(dict.fromkeys(row["word"] for row in self.rows if row["word"] is not None))

    @property
    def trace(self) -> Trace:
        """Its maps and images, read anew each time and without the other items'.

        Raises:
            FileError: the files are damaged or missing.
        """
        first = self.rows[0]
        maps = _inside(self.folder, first["maps"])
        with files.damage_named(maps, "is damaged or missing"):
            run = files.load_run(maps, int(first["run"]))
        return Trace([replace(run, images=self.images)])

    @property
    def image(self) -> Image.Image | None:
        """Its image; None where the batch kept none.

        Raises:
            FileError: the file is damaged or missing.
        """
        found = self.images
        return found[0] if found else None

    @property
    def images(self) -> list[Image.Image]:
        """Its image, and those of its edits.

        Raises:
            FileError: a file is damaged or missing.
        """
        paths = dict.fromkeys(row["image"] for row in self.rows if row["image"] is not None)
        return [_picture(_inside(self.folder, path)) for path in paths]

    def __repr__(self) -> str:
        return f"StoredRun({self.name!r}: {self.prompt!r}, seed {self.seed})"


class Runs(Sequence[StoredRun]):
    """The items of a batch that are done, in the order of their lines, then of their names.

    A line's number is that of the file that the item was drawn from.

    >>> runs = xattn.open_runs("runs")
    >>> runs[12].trace.heatmap("red").overlay()
    >>> [run.prompt for run in runs.filter(word="red", min_focus=0.8)]
    """

    def __init__(self, folder: Path, runs: Sequence[StoredRun]) -> None:
        self.folder = folder
        self._runs = list(runs)

    @overload
    def __getitem__(self, index: int | str, /) -> StoredRun: ...
    @overload
    def __getitem__(self, index: slice, /) -> Runs: ...
    def __getitem__(self, index: int | str | slice, /) -> StoredRun | Runs:
        """Gives an item by its place or its name, or several as a ``Runs`` of their own."""
        if isinstance(index, slice):
            return Runs(self.folder, self._runs[index])
        if isinstance(index, str):
            for run in self._runs:
                if run.name == index:
                    return run
            raise KeyError(f"no item of {self.folder} is named {index!r}")
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return f"Runs({str(self.folder)!r}: {len(self)} items)"

    @property
    def rows(self) -> Iterator[Row]:
        """The index: a row for each word of each image."""
        return (row for run in self._runs for row in run.rows)

    def filter(
        self,
        *,
        word: str | None = None,
        prompt: str | None = None,
        min_focus: float | None = None,
        max_focus: float | None = None,
        min_entropy: float | None = None,
        max_entropy: float | None = None,
        where: Callable[[Row], bool] | None = None,
    ) -> Runs:
        """Gives the items that have a row of the index to which everything said applies.

        Args:
            word: the row's word, without regard to case.
            prompt: a part of its image's prompt, without regard to case.
            min_focus: the least focus: 1 less the share of the image that holds half of the map,
                above 0.99 for a point and 0.5 for an even map.
            max_focus: the most.
            min_entropy: the least entropy, 0 for a point and 1 for an even map.
            max_entropy: the most.
            where: a test of the row.
        """
        ranges = {"focus": (min_focus, max_focus), "entropy": (min_entropy, max_entropy)}

        def fits(row: Row) -> bool:
            if word is not None and (row["word"] or "").casefold() != word.casefold():
                return False
            if prompt is not None and prompt.casefold() not in row["prompt"].casefold():
                return False
            inside = (_between(row[key], *limits) for key, limits in ranges.items())
            return all(inside) and (where is None or where(row))

        return Runs(self.folder, [run for run in self._runs if any(map(fits, run.rows))])


def open_runs(folder: str | os.PathLike[str]) -> Runs:
    """Opens a batch's folder, also one that is under way or was interrupted.

    Only the index is read; maps and images when they are asked for.

    Raises:
        FileNotFoundError: there is no batch.
        FileError: the index is damaged.

    Example:
        >>> for run in xattn.open_runs("runs").filter(word="red", min_focus=0.8):
        ...     run.trace.heatmap("red").overlay().save(f"{run.name}.png")
    """
    folder = Path(folder)
    if not (folder / SETTINGS).exists():
        raise FileNotFoundError(f"there is no batch in {folder}: it has no {SETTINGS}")
    whole = folder / INDEX
    parts = [whole] if whole.exists() else sorted((folder / PARTS).glob("*.jsonl"))
    items: dict[str, list[Row]] = {}
    order: dict[str, tuple[int, str]] = {}
    for part in parts:
        try:
            for row in _rows(part):
                name = str(row["name"])
                order.setdefault(name, (int(row["line"]), name))
                items.setdefault(name, []).append(row)
        except (KeyError, TypeError, ValueError) as error:
            raise files.FileError(f"{part} is damaged ({error})") from error
    names = sorted(items, key=lambda name: order[name])
    return Runs(folder, [StoredRun(folder, tuple(items[name])) for name in names])


def _picture(path: Path) -> Image.Image:
    with files.damage_named(path, "is damaged or missing"), Image.open(path) as image:
        return image.convert("RGB")


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _inside(folder: Path, name: str) -> Path:
    """Gives a path in the folder.

    Raises:
        ValueError: it leads out of it, by itself or by a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of {folder}")
    return path


def _between(value: Any, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    if value is None:
        return False
    return (least is None or value >= least) and (most is None or value <= most)
