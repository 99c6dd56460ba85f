"""The result of an edit: a source image and its edited siblings."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from xattn.edits.plan import EditPlan
from xattn.instruments.keeper import KeptSource
from xattn.results.trace import Trace
from xattn.views import pasting, sheets
from xattn.views.pasting import Fidelity, fidelity
from xattn.views.report import page as report

if TYPE_CHECKING:
    from xattn.inversion.inversion import Inversion


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
        inversion: that of the photograph it is an edit of; None without one.
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
    inversion: Inversion | None = None

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

    @property
    def fidelity(self) -> Fidelity | None:
        """PSNR of the source to a photograph and its reconstruction; None without a photograph."""
        if self.inversion is None:
            return None
        return fidelity(self.source, self.inversion.reconstruction, self.inversion.photo)

    def paste(
        self,
        edit: int = 0,
        *,
        original: Image.Image | None = None,
        mask: Any = None,
        feather: float = 1.0,
    ) -> Image.Image:
        """Put an edit's places back into the full-size photograph.

        What lies further than the feathered edge from the mask stays bit for bit, at any size.

        Args:
            edit: which of the edits.
            original: the photograph; the one that was passed by default.
            mask: (height, width) on any grid, bool, numbers or a picture: the places; by default
                those where LocalBlend let the edit through at the last step.
            feather: width of the soft edge, in cells of the mask's grid.

        Returns:
            RGB, or RGBA where the photograph is transparent somewhere.

        Raises:
            TypeError: edit is not a number, or original not a PIL image.
            ValueError: there is no photograph, or no mask.

        Example:
            >>> blue = [xattn.Replace("red", "blue"), xattn.LocalBlend("car")]
            >>> result = xattn.edit(pipe, prompt, blue, image=photo)
            >>> result.paste().save("blue.png")
        """
        if not hasattr(edit, "__index__"):
            raise TypeError(
                f"edit must be the number of an edit, not {type(edit).__name__}; a photograph is "
                "original="
            )
        if original is None:
            original = None if self.inversion is None else self.inversion.original
        if original is None:
            raise ValueError("there is no photograph to paste into: pass original=")
        if not isinstance(original, Image.Image):
            raise TypeError(
                f"original must be a PIL image, not {type(original).__name__}; open a file by "
                "PIL.Image.open"
            )
        places = self.masks[edit] if mask is None else mask
        if places is None:
            raise ValueError(
                f"edit {edit} has no LocalBlend that says where it is: pass mask=, or edit with one"
            )
        if mask is None:
            places = places[-1]
        return pasting.pasted(original, self.images[edit], pasting.as_mask(places), feather)

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
