"""Maps of concepts that compete for the picture: overlays, segmentation, masks, COCO's JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xattn.maps import competition, daam, evidence, refine, select
from xattn.records.concepts import BACKGROUND, EVIDENCE, gains_of
from xattn.records.run import LayerFilter, Run
from xattn.results.heatmap import HeatMap
from xattn.views import colours, sheets

COLOURS = (
    (230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25), (145, 30, 180), (245, 130, 48),
    (70, 240, 240), (240, 50, 230), (170, 110, 40), (128, 128, 0), (0, 0, 128), (250, 190, 212),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ConceptMaps(Mapping[str, HeatMap]):
    """A heat map of each concept: ``maps["car"].overlay()``.

    Attributes:
        maps: by concept, on the latent grid.
        form: "evidence", "output", "competition" or "attention"; see ``Trace.concepts``.
        picture: the image that they belong to, where it is known.
    """

    maps: Mapping[str, HeatMap]
    form: str
    picture: Image.Image | None = None

    def __getitem__(self, name: str) -> HeatMap:
        return self.maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    def _repr_png_(self) -> bytes:
        return sheets.png(self.segmentation().overlay())

    def segmentation(self, threshold: float = 0.4) -> Segmentation:
        """Return for each place the concept that takes it: the arg-max over the concepts.

        Maps of attention have scales of their own, so each is divided by its maximum first, and a
        place where none reaches the threshold is background. Outputs are compared as they are;
        their background is a concept like the others.

        Args:
            threshold: share of a map's maximum, in [0, 1].
        """
        size = (128, 128) if self.picture is None else (self.picture.height, self.picture.width)
        names = [name for name in self.maps if name != BACKGROUND]
        stack = np.stack([self.maps[name].resize(size).array for name in names])
        if self.form == "output" and BACKGROUND in self.maps:
            floor = self.maps[BACKGROUND].resize(size).array
        else:
            stack = stack / np.maximum(stack.max((1, 2), keepdims=True), 1e-12)
            floor = np.full(size, threshold)
        labels = np.where(stack.max(0) >= floor, stack.argmax(0) + 1, 0)
        return Segmentation(labels.astype(np.uint8), tuple(names), self.picture)

    def masks(self, threshold: float = 0.4) -> dict[str, NDArray[np.bool_]]:
        """Return the mask of each concept in the segmentation, (height, width) of the picture."""
        return self.segmentation(threshold).masks()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The concept of each place.

    Attributes:
        labels: uint8 (height, width), 0 for the background, n for the nth of ``names``.
        names: the concepts, from 1.
        picture: the image, where it is known.
    """

    labels: NDArray[np.uint8]
    names: tuple[str, ...]
    picture: Image.Image | None = None

    def masks(self) -> dict[str, NDArray[np.bool_]]:
        """Return the mask of each concept, (height, width)."""
        return {name: self.labels == n for n, name in enumerate(self.names, start=1)}

    def overlay(self, *, opacity: float = 0.55, legend: bool = True) -> Image.Image:
        """Return the picture under the concepts' colours, with their names beside it."""
        height, width = self.labels.shape
        under = self.picture or Image.new("RGB", (width, height), colours.GREY)
        table = np.array([(0, 0, 0), *(_colour(n) for n in range(len(self.names)))], np.uint8)
        painted = Image.blend(under.convert("RGB"), Image.fromarray(table[self.labels]), opacity)
        mask = Image.fromarray((self.labels > 0).astype(np.uint8) * 255)
        shown = Image.composite(painted, under.convert("RGB"), mask)
        if not legend:
            return shown
        bars = [Image.new("RGB", (120, 24), _colour(n)) for n in range(len(self.names))]
        beside = sheets.table([[bar] for bar in bars], self.names, side=120)  # labels as wide
        whole = (shown.width + beside.width, max(shown.height, beside.height))
        sheet = Image.new("RGB", whole, beside.getpixel((0, 0)))
        sheet.paste(shown, (0, 0))
        sheet.paste(beside, (shown.width, 0))
        return sheet

    def _repr_png_(self) -> bytes:
        return sheets.png(self.overlay())

    def to_coco(self, file_name: str = "image.png") -> dict[str, Any]:
        """Return COCO's JSON of one image: an annotation with an uncompressed RLE per concept."""
        height, width = self.labels.shape
        found: list[dict[str, Any]] = []
        for n, mask in enumerate(self.masks().values(), start=1):
            if mask.any():
                about = {"id": len(found) + 1, "image_id": 1, "category_id": n, "iscrowd": 1}
                found.append({**about, **_region(mask)})
        return {
            "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
            "categories": [{"id": n, "name": name} for n, name in enumerate(self.names, start=1)],
            "annotations": found,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write labels.png (a palette picture), a PNG mask of each concept, and coco.json.

        Raises:
            ValueError: the folder has the name of a picture.
        """
        place = Path(folder)
        if place.suffix.lower() in Image.registered_extensions():
            raise ValueError(
                f"folder={str(folder)!r} names a picture, and a segmentation is saved as a folder "
                "of masks; for one picture use .overlay().save(...)"
            )
        place.mkdir(parents=True, exist_ok=True)
        labels = Image.fromarray(self.labels, mode=None).convert("P")
        labels.putpalette([0, 0, 0, *(c for n in range(len(self.names)) for c in _colour(n))])
        labels.save(place / "labels.png")
        for n, mask in enumerate(self.masks().values(), start=1):
            Image.fromarray(mask).save(place / f"mask-{n:02d}.png")
        text = json.dumps(self.to_coco(), ensure_ascii=False)
        (place / "coco.json").write_text(text, encoding="utf-8")


def _colour(n: int) -> tuple[int, int, int]:
    return COLOURS[n % len(COLOURS)]


def _region(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask's area, box (x, y, width, height) and run lengths, column by column."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    flat = np.concatenate([[False], mask.ravel(order="F")])
    turns = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff(np.concatenate([[0], turns, [mask.size]]))
    return {
        "area": int(mask.sum()),
        "bbox": [int(side) for side in box],
        "segmentation": {"size": list(mask.shape), "counts": [int(c) for c in counts]},
    }


# -- from a run


def concept_maps(
    run: Run,
    names: list[str] | None,
    image: int,
    *,
    form: str | None = None,
    steps: select.Steps = None,
    layers: LayerFilter = None,
    refined: bool = False,
) -> ConceptMaps:
    """Return the maps of some concepts that a run asked for.

    Raises:
        ValueError: nothing was asked, or not these concepts, or not in this form.
    """
    if not run.concepts:
        raise ValueError("no concepts were asked for: record or probe with also=['car', 'sky']")
    kind = _usual(run, names) if form is None else form
    if kind not in run.concepts:
        raise ValueError(f"form={form!r} is none of {', '.join(run.concepts)}")
    own = run.concepts[kind]
    known: list[str] = own.info["concepts"]
    wanted = [name for name in known if name != BACKGROUND] if names is None else names
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        raise ValueError(
            f"concept {missing[0] if missing else wanted!r} was not asked for; those asked are: "
            f"{', '.join(known)}; record again with it in also="
        )
    index = [known.index(name) for name in wanted]
    if kind == EVIDENCE:
        base = concept_maps(run, wanted, image, form=_read(run), steps=steps, layers=layers)
        stack = _raised(
            own, index, torch.stack([torch.tensor(base[name].array) for name in wanted]), steps
        )
    elif kind == "output":
        stack = _shares(own, index, image, steps, layers)
    else:
        stack = daam.token_maps(own, index, image, steps=steps, layers=layers)
    if refined:
        stack = refine.refined(run, stack, image)
    picture = run.images[image] if image < len(run.images) else None
    meta = {"image": image, "form": kind}
    maps = {
        name: HeatMap(each.numpy(), name, meta, picture)
        for name, each in zip(wanted, stack, strict=True)
    }
    return ConceptMaps(maps, kind, picture)


def _usual(run: Run, names: list[str] | None) -> str:
    """Return the default form: evidence, but for a concept that it doesn't have."""
    own = run.concepts.get(EVIDENCE)
    if own is not None and set(names or ()) <= set(own.info["concepts"]):
        return EVIDENCE
    return _read(run)


def _read(run: Run) -> str:
    """Return the form of attention that evidence is laid on."""
    return [form for form in run.concepts if form != EVIDENCE][-1]


def _raised(own: Run, index: list[int], stack: torch.Tensor, steps: select.Steps) -> torch.Tensor:
    """Return maps raised by the concepts' gains, at the noisier half of the levels if not told."""
    chosen = range((own.done + 1) // 2) if steps is None else select.step_indices(own, steps)
    gain = gains_of(own, list(chosen))[index]
    grid = stack.shape[-2:]
    if gain.shape[-2:] != grid:
        gain = torch.nn.functional.interpolate(gain[None], grid, mode="area")[0]
    return evidence.raised(stack, gain)


def _shares(
    run: Run, index: list[int], image: int, steps: select.Steps, layers: LayerFilter
) -> torch.Tensor:
    """Return softmax over the concepts of o_image . o_concept, averaged over steps and layers."""
    chosen, weights = select.layers_of(run, layers)
    total = torch.zeros(len(index), *run.latent)
    for layer, weight in zip(chosen, weights, strict=True):
        each = run.maps(layer, select.step_indices(run, steps))[:, image, 0, index]
        shares = torch.stack([competition.competing(maps) for maps in each]).mean(0)
        total += weight * daam.to_grid(shares, run.latent)
    return total / total.sum(0).clamp_min(1e-12)  # bicubic sampling can miss one
