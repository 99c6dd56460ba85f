"""Sheets of a recording's words: a row each, steps or layers as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from xattn import units
from xattn.maps import select
from xattn.maps.select import Asked
from xattn.records.run import LayerFilter
from xattn.results.heatmap import HeatMap
from xattn.results.recorded import Recorded
from xattn.views import bars, colours, sheets


@dataclass
class Grid:
    """The rows of a sheet, gathered word by word.

    Attributes:
        picture: what maps are drawn on; grey by default.
        opacity: of the colours.
        colormap: a name of matplotlib's.
        plain: whether the first column is the plain picture.
        columns: labels of the maps' columns.
        cells: the pictures, a list for each row.
        notes: for each cell what its last colour stands for.
    """

    picture: Image.Image | None
    opacity: float
    colormap: str
    plain: bool
    columns: list[str] = field(default_factory=list)
    cells: list[list[Image.Image]] = field(default_factory=list)
    notes: list[list[str]] = field(default_factory=list)

    def add(
        self,
        heats: Sequence[HeatMap],
        tops: Sequence[float],
        under: Sequence[Image.Image | None] | None = None,
    ) -> None:
        """Add a row of maps, each scaled to a value of its own.

        Args:
            heats: the maps.
            tops: for each the value of its last colour.
            under: for each the picture that it is drawn on, where they differ.
        """
        how: dict[str, Any] = {"opacity": self.opacity, "colormap": self.colormap}
        under = under or [self.picture] * len(heats)
        cells = [
            colours.overlay(heat, picture, top=top, **how)
            for heat, top, picture in zip(heats, tops, under, strict=True)
        ]
        notes = [f"0 to {units.number_text(top)}" for top in tops]
        if self.plain:
            cells.insert(0, colours.picture(self.picture, heats[0].shape))
            notes.insert(0, "")
        self.cells.append(cells)
        self.notes.append(notes)

    def drawn(self, rows: Sequence[str], colorbar: bool) -> Image.Image:
        """Return the sheet, with a bar whose numbers are shares of the value under each cell."""
        columns = ["picture", *self.columns] if self.plain else self.columns
        sheet = sheets.table(self.cells, rows, columns, notes=self.notes)
        if not colorbar:
            return sheet
        ramp = colours.color_table(self.colormap)
        return bars.barred(sheet, 0, 1, ramp, "share of the maximum", most=18)


def by_step(
    trace: Recorded, grid: Grid, words: Sequence[Asked], image: int, steps: Sequence[int] | None
) -> None:
    """Add a row for each word: the sum over the steps, then each of some, which share a scale."""
    run = trace.run
    if "step" in run.keep:
        chosen = select.step_indices(run, sheets.spread(run.done) if steps is None else steps)
    else:
        chosen = select.step_indices(run, steps)[:0]
    grid.columns = [f"all {run.axis}s", *map(run.step_name, chosen)]
    for word in words:
        whole = trace.heatmap(word, image)
        heats = [trace.heatmap(word, image, steps=[step]) for step in chosen]
        top = max((heat.maximum for heat in heats), default=0.0)
        grid.add([whole, *heats], [whole.maximum, *[top] * len(heats)])


def by_frame(
    trace: Recorded, grid: Grid, words: Sequence[Asked], video: int, on: Image.Image | None
) -> None:
    """Add a row for each word: the sum over the steps in some frames, which share a scale."""
    chosen = sheets.spread(trace.run.frames)
    places = [select.frames_of(trace.run, video)[n] for n in chosen]
    grid.columns = [f"frame {n}" for n in chosen]
    for word in words:
        heats = [trace.heatmap(word, place) for place in places]
        top = max(heat.maximum for heat in heats)
        grid.add(heats, [top] * len(heats), [on or heat.picture for heat in heats])


def by_layer(
    trace: Recorded,
    grid: Grid,
    words: Sequence[Asked],
    image: int,
    steps: Sequence[int] | None,
    layers: LayerFilter,
) -> None:
    """Add a row for each word: the mean of some layers, then each of them on its own scale."""
    chosen = select.layers_of(trace.run, layers)[0]
    grid.columns = ["all of them", *sheets.shortened([trace.run.layers[n].name for n in chosen])]
    for word in words:
        whole = trace.heatmap(word, image, steps=steps, layers=layers)
        each = trace.layers(word, image, steps=steps, layers=layers)
        heats = [whole, *each.values()]
        grid.add(heats, [heat.maximum for heat in heats])
