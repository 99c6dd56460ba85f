"""What seems wrong in the images of a batch: counts, the worst cases, and a page of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.results.diagnosis import Finding
from xattn.views.report import findings

if TYPE_CHECKING:
    from xattn.batch.index import StoredRun


@dataclass(frozen=True)
class Diagnoses:
    """What seems wrong in the images of a batch.

    Attributes:
        counts: how many items have a finding of each kind, by the kind's name.
        items: how many items were looked at.
        worst: items that have findings, with these; the most certain first.
    """

    counts: Mapping[str, int]
    items: int
    worst: tuple[tuple[StoredRun, tuple[Finding, ...]], ...]

    def page(self, path: str | os.PathLike[str], most: int = 50) -> None:
        """Write a self-contained HTML page: counts, and the worst cases with pictures and maps.

        Args:
            path: of the page.
            most: how many cases, from the worst on.

        Raises:
            FileError: an item's files are damaged or missing.

        Example:
            >>> xattn.open_runs("runs").diagnose().page("wrong.html")
        """
        findings.write(path, str(self), self.counts, map(_case, self.worst[:most]))

    def __str__(self) -> str:
        kinds = ", ".join(f"{name.lower()} {count}" for name, count in self.counts.items())
        return f"{self.items} items: {kinds or 'nothing found'}"


def _case(each: tuple[StoredRun, tuple[Finding, ...]]) -> findings.Case:
    run, found = each
    picture = run.image
    shown = tuple((str(one), one.map.overlay(picture)) for one in found)
    return findings.Case(run.name, run.prompt, picture, shown)
