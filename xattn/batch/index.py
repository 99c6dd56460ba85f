"""Stored runs of a batch, found by the rows of its index."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from xattn.batch import comparison
from xattn.batch.diagnoses import Diagnoses
from xattn.batch.importance import importance_of
from xattn.batch.layout import INDEX, PARTS, SETTINGS, Row, path_inside, read_rows
from xattn.maps.measures import NUMBERS
from xattn.records import files
from xattn.records import format as file_format
from xattn.records.run import Run
from xattn.results.attribution import Attribution
from xattn.results.diagnosis import Finding, Thresholds
from xattn.results.trace import Trace


@dataclass(frozen=True)
class StoredRun:
    """An item of a batch: its rows of the index, and its maps on demand.

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
        """Line of the file that it was drawn from, from 1."""
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
        return Trace([replace(self.recording, images=self.images)])

    @property
    def recording(self) -> Run:
        """Its run without the images, read anew each time.

        Raises:
            FileError: the file is damaged or missing.
        """
        first = self.rows[0]
        maps = path_inside(self.folder, first["maps"])
        with file_format.damage_named(maps, "is damaged or missing"):
            return files.load_run(maps, int(first["run"]))

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
        return [_picture(path_inside(self.folder, path)) for path in paths]

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
        """Return an item by its place or its name, or several as a ``Runs`` of their own."""
        if isinstance(index, slice):
            return Runs(self.folder, self._runs[index])
        if isinstance(index, str):
            for run in self._runs:
                if run.name == index:
                    return run
            raise KeyError(f"{index!r} is not the name of an item of {self.folder}")
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
        where: Callable[[Row], bool] | None = None,
        **limits: float | None,
    ) -> Runs:
        """Return the items with a row of the index to which everything given applies.

        Args:
            word: the row's word, without regard to case.
            prompt: a part of its image's prompt, without regard to case.
            where: a test of the row.
            **limits: the least and the most of a measure of ``xattn.maps.measures``, such as
                ``min_focus=0.8`` (focus is near 1 for a point and 0.5 for an even map) or
                ``max_entropy=0.5`` (0 for a point, 1 for an even map).

        Raises:
            TypeError: a limit is not min_ or max_ and the name of a measure that is a number.
        """
        ranges = _ranges(limits)

        def fits(row: Row) -> bool:
            if word is not None and (row["word"] or "").casefold() != word.casefold():
                return False
            if prompt is not None and prompt.casefold() not in row["prompt"].casefold():
                return False
            inside = (_between(row.get(name), *pair) for name, pair in ranges.items())
            return all(inside) and (where is None or where(row))

        return Runs(self.folder, [run for run in self._runs if any(map(fits, run.rows))])

    def diagnose(self, *, thresholds: Thresholds | None = None) -> Diagnoses:
        """Return how many items have each kind of finding, and the worst of them.

        Reads the maps of each item in turn.

        Args:
            thresholds: the score at which each kind of finding begins.

        Raises:
            FileError: an item's files are damaged or missing.

        Example:
            >>> found = xattn.open_runs("runs").diagnose()
            >>> print(found)
            >>> found.page("wrong.html")
        """
        found: list[tuple[StoredRun, tuple[Finding, ...]]] = []
        counts: Counter[str] = Counter()
        for run in self._runs:
            findings = tuple(run.trace.diagnose(thresholds=thresholds))
            counts.update({type(each).__name__ for each in findings})
            if findings:
                found.append((run, findings))
        found.sort(key=lambda each: -max(finding.score for finding in each[1]))
        return Diagnoses(dict(counts.most_common()), len(self._runs), tuple(found))

    def compare(
        self, other: Runs, *, measures: Sequence[str] = comparison.MEASURES
    ) -> comparison.BatchComparison:
        """Return what each word's map changed from another batch to this one.

        Images are paired by their items' names: those of one line of the same file drawn by two
        models, for example. Measures are those of the index; "mean", "maximum" and "std" are per
        step. Intervals are 95 % bootstrap intervals over the images, the same at every call.

        Args:
            other: the batch to subtract.
            measures: names of ``xattn.maps.measures`` that are numbers.

        Raises:
            ValueError: a measure is unknown, or the batches have no word of an image in common.
            FileError: an item's maps are damaged or missing.

        Example:
            >>> print(xattn.open_runs("tuned").compare(xattn.open_runs("base")))
        """
        return comparison.compare(self, other, measures)

    def importance(
        self,
        pipe: Any,
        *,
        shuffles: int = 1,
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Attribution:
        """Return how much each input decides, by shuffling its values among the items.

        Inputs are the prompt and the seed, and of negative prompt, steps and guidance those that
        differ among the items; every item is drawn again, and once more for each input and
        shuffle. See ``xattn.importance``.

        Args:
            pipe: the pipeline that drew the batch.
            shuffles: how often each input's values are shuffled.
            seed: of the shuffles.
            cache: a folder that keeps every picture, so that what was interrupted goes on.
            **options: of every call, beside what the batch knows.

        Raises:
            ValueError: there are fewer than two items, of several sizes, or the pipeline draws
                other pictures than those stored.

        Example:
            >>> xattn.open_runs("runs").importance(pipe).bar().save("inputs.png")
        """
        return importance_of(
            self._runs, pipe, shuffles=shuffles, seed=seed, cache=cache, options=options
        )


def open_runs(folder: str | os.PathLike[str]) -> Runs:
    """Open a batch's folder, also one that is under way or was interrupted.

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
            for row in read_rows(part):
                name = str(row["name"])
                order.setdefault(name, (int(row["line"]), name))
                items.setdefault(name, []).append(row)
        except (KeyError, TypeError, ValueError) as error:
            raise file_format.FileError(f"{part} is damaged ({error})") from error
    names = sorted(items, key=lambda name: order[name])
    return Runs(folder, [StoredRun(folder, tuple(items[name])) for name in names])


def _picture(path: Path) -> Image.Image:
    with file_format.damage_named(path, "is damaged or missing"), Image.open(path) as image:
        return image.convert("RGB")


def _ranges(limits: Mapping[str, float | None]) -> dict[str, tuple[float | None, float | None]]:
    """Return (least, most) of each measure that a limit names."""
    names = {name.partition("_")[2] for name in limits}
    unknown = [n for n in limits if n[:4] not in ("min_", "max_") or n[4:] not in NUMBERS]
    if unknown:
        raise TypeError(
            f"{unknown[0]!r} is not a limit: write min_ or max_ before one of {', '.join(NUMBERS)}"
        )
    return {name: (limits.get(f"min_{name}"), limits.get(f"max_{name}")) for name in names}


def _between(value: Any, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    if value is None:
        return False
    return (least is None or value >= least) and (most is None or value <= most)
