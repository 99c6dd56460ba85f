"""The result of an edit: a source image and its edited siblings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from xattn.edits.plan import EditPlan
from xattn.instruments.keeper import KeptSource
from xattn.results.trace import Trace
from xattn.views import sheets
from xattn.views.report import page as report


@dataclass(repr=False)
class EditResult:
    """A source image and its edited siblings.

    With several seeds it speaks of the first; ``result.seeds`` has a result for each.

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
        seeds: a result for each seed; the first is this one.
        kept: what ``edit(..., source=result)`` needs; ``kept.nbytes`` says how much that is.
    """

    source: Any
    images: list[Any]
    prompts: list[str]
    plan: EditPlan
    masks: list[Tensor | None]
    trace: Trace | None
    labels: list[str] = field(default_factory=list)
    seeds: list[EditResult] = field(default_factory=list)
    kept: KeptSource | None = None

    def strip(self, side: int = 256) -> Image.Image:
        """Draws the source and its siblings in a row, a row for each seed."""
        results = self.seeds or [self]
        cells = [[one.source, *one.images] for one in results]
        return sheets.table(cells, columns=["source", *self.labels], side=side)

    def sheet(self) -> Image.Image:
        """Draws the source beside its siblings, and under them where LocalBlend let them act."""
        return sheets.edits(self.source, self.images, ["source", *self.labels], self.masks)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained HTML page: images side by side, masks, plan, every word's map.

        Raises:
            ValueError: the images are no pictures (``output_type`` was not "pil").
        """
        report.write_edit(path, self)

    def __repr__(self) -> str:
        seeds = f", {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"EditResult({self.prompts[0]!r}: {', '.join(self.labels)}{seeds})"

    def _repr_png_(self) -> bytes | None:
        import io

        if not isinstance(self.source, Image.Image):
            return None
        data = io.BytesIO()
        self.strip().save(data, "PNG")
        return data.getvalue()
