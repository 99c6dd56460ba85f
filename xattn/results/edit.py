"""The result of an edit: a source image and its edited siblings."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from xattn.edits.plan import EditPlan
from xattn.instruments.keeper import KeptSource
from xattn.results.trace import Trace
from xattn.views import sheets
from xattn.views.report import page as report


@dataclass(frozen=True, repr=False, eq=False)
class EditResult:
    """A source image and its edited siblings.

    With several seeds it is the first one's; ``result[i]`` is the result of another,
    ``result.seeds`` all of them.

    Attributes:
        source: the source's image.
        images: the siblings' images, one for each edit.
        prompts: the source's prompt, and each sibling's.
        plan: ``print(result.plan)`` shows which token takes from which, and when.
        masks: for each edit where LocalBlend let it through, (steps, height, width) of the
            latents, all of it before its start; None for an edit without LocalBlend.
        trace: what each image attends to in effect, the source's as image 0 and the siblings' as
            1, 2 ... (with several seeds ``index x seeds + seed``); None where nothing was recorded.
        labels: a name for each sibling.
        others: the results of the other seeds, where this is the first one's.
        seed: which of the seeds this is, and ``of`` how many there are: with these its images are
            found in the trace.
        of: how many seeds there are.
        kept: what ``edit(..., source=result)`` needs; ``kept.nbytes`` says how much that is.
    """

    source: Any
    images: tuple[Any, ...]
    prompts: tuple[str, ...]
    plan: EditPlan
    masks: tuple[Tensor | None, ...]
    trace: Trace | None
    labels: tuple[str, ...] = ()
    others: tuple[EditResult, ...] = ()
    seed: int = 0
    of: int = 1
    kept: KeptSource | None = None

    @property
    def seeds(self) -> tuple[EditResult, ...]:
        """A result for each seed, this one first."""
        return (self, *self.others)

    def __len__(self) -> int:
        """Return how many seeds there are."""
        return 1 + len(self.others)

    def __getitem__(self, seed: int) -> EditResult:
        """Return the result of a seed."""
        return self.seeds[seed]

    def labelled(self, *labels: str) -> EditResult:
        """Return the same result with other names for its siblings.

        Raises:
            ValueError: there are not as many labels as siblings.
        """
        if len(labels) != len(self.images):
            raise ValueError(f"{len(labels)} labels for {len(self.images)} edits: give one each")
        others = tuple(replace(other, labels=labels) for other in self.others)
        return replace(self, labels=labels, others=others)

    def strip(self, side: int = 256) -> Image.Image:
        """Draw the source and its siblings in a row, a row for each seed."""
        cells = [[one.source, *one.images] for one in self.seeds]
        return sheets.table(cells, columns=["source", *self.labels], side=side)

    def sheet(self) -> Image.Image:
        """Draw the source beside its siblings, and under them where LocalBlend let them act."""
        return sheets.edits(
            self.source, list(self.images), ["source", *self.labels], list(self.masks)
        )

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page: images side by side, masks, plan, every word's map.

        Raises:
            ValueError: the images are no pictures (``output_type`` was not "pil").
        """
        report.write_edit(path, self)

    def __repr__(self) -> str:
        seeds = f", {len(self)} seeds" if len(self) > 1 else ""
        return f"EditResult({self.prompts[0]!r}: {', '.join(self.labels)}{seeds})"

    def _repr_png_(self) -> bytes | None:
        if not isinstance(self.source, Image.Image):
            return None
        data = io.BytesIO()
        self.strip().save(data, "PNG")
        return data.getvalue()
