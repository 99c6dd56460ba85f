"""What was recorded, and the questions one can ask of it."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from xattn import units
from xattn.maps import daam, select
from xattn.maps.select import Asked, Steps
from xattn.records import files
from xattn.records.run import LayerFilter
from xattn.results import films, grids
from xattn.results.asking import Asking
from xattn.results.attribution import Attribution
from xattn.views import animation, colours, sheets
from xattn.views.report import page as report
from xattn.views.report.page import Card, Subject


class Trace(Asking):
    """The runs that were recorded, one for each call of the pipeline.

    Every question goes to the latest run; ``trace[0]`` is a trace of the first alone. An
    ``image`` is an index in the order of ``pipe(...).images``, the first by default. What draws
    takes the picture that was recorded with the image, grey where there is none, or the picture
    given as ``on``.

    >>> with xattn.record(pipe) as trace:
    ...     image = pipe("a red car").images[0]
    >>> trace.heatmap("red").overlay(on=image)

    Attributes:
        runs: what each call left, the latest last.
    """

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Trace:
        return Trace([self.runs[index]])

    def __iter__(self) -> Iterator[Trace]:
        return (Trace([run]) for run in self.runs)

    def __bool__(self) -> bool:
        return True  # an empty trace is still a trace

    # -- pictures

    def grid(
        self,
        words: Sequence[Asked] | None = None,
        image: int = 0,
        steps: Sequence[int] | None = None,
        *,
        on: Image.Image | None = None,
        layers: LayerFilter = None,
        plain: bool | None = None,
        colorbar: bool = False,
        opacity: float = colours.OPACITY,
        colormap: str = colours.COLORMAP,
    ) -> Image.Image:
        """Draw a row for each word, with steps or layers as columns.

        Without ``layers`` it is the sum over the steps, then each of some steps, which share one
        scale; with it the mean of these layers, then each of them on a scale of its own. Under
        each cell stands the value of its last colour. Of a video it draws some of its frames, each
        the sum over the steps, unless steps or layers are given.

        Args:
            words: every word by default.
            image: index of the image, or of any frame of the video.
            steps: those shown, six spread over the run by default; with ``layers`` those summed.
            on: a picture to draw on; the one recorded with the image, or grey, by default.
            layers: names, globs, a test of a ``Layer``, "all" or "daam".
            plain: whether the first column is the plain picture; by default where layers are.
            colorbar: whether to draw the colours' scale to the right.
            opacity: of the colours.
            colormap: a name of matplotlib's.

        Example:
            >>> trace.grid(["red", "car"], layers="all", colorbar=True).save("layers.png")
        """
        index = self._index(image)
        wanted = list(select.kept_words(self.run, index) if words is None else words)
        with_picture = layers is not None if plain is None else plain
        grid = grids.Grid(self._canvas(index, on), opacity, colormap, with_picture)
        if self.run.frames > 1 and steps is None and layers is None:
            grids.by_frame(self, grid, wanted, index // self.run.frames, on)
        elif layers is None:
            grids.by_step(self, grid, wanted, index, steps)
        else:
            grids.by_layer(self, grid, wanted, index, steps, layers)
        return grid.drawn([str(word) for word in wanted], colorbar)

    def matrix(
        self,
        word: Asked,
        image: int = 0,
        *,
        steps: Steps = None,
        occurrence: int | None = None,
        colormap: str = colours.COLORMAP,
    ) -> Image.Image:
        """Draw a word's map in each head of each layer; needs the head axis.

        Each map is on the layer's own grid and scaled to its own maximum, which stands under it.
        """
        run, index = self.run, self._index(image)
        positions = select.word_positions(run, word, index, occurrence)
        cells, notes = [], []
        for n in range(len(run.layers)):
            heads = daam.head_maps(run, n, positions, index, steps=steps).mean(1)  # (heads, h, w)
            cells.append([colours.paint(head, colormap) for head in heads])
            notes.append([f"0 to {units.number_text(float(head.max()))}" for head in heads])
        columns = [f"head {h}" for h in range(max(map(len, cells)))]
        rows = sheets.shortened([layer.name for layer in run.layers])
        return sheets.table(
            cells, rows, columns, title=str(word), side=96, smooth=False, notes=notes
        )

    def animate(
        self,
        word: Asked,
        path: str | os.PathLike[str],
        image: int = 0,
        *,
        on: Image.Image | None = None,
        previews: Sequence[Image.Image] | None = None,
        layers: LayerFilter = None,
        occurrence: int | None = None,
        opacity: float = colours.OPACITY,
        colormap: str = colours.COLORMAP,
        milliseconds: int = 120,
    ) -> None:
        """Write an animation over the steps: GIF, WebP or PNG, by the path's ending.

        Of a video it shows the frames instead, each the sum over the steps.

        Args:
            word: whose map lies over the image.
            path: ends in .gif, .webp, .png or .apng.
            image: index of the image, or of any frame of the video.
            on: a picture to draw on; the one recorded with the image, or grey, by default.
            previews: the image as it forms, one for each step. By default what the denoiser took
                it to be, where ``record(previews=True)`` kept that, else the final image.
            layers: as for ``heatmap``.
            occurrence: as for ``heatmap``.
            opacity: of the colours.
            colormap: a name of matplotlib's.
            milliseconds: how long a step is shown.
        """
        index = self._index(image)
        picture = self._canvas(index, on)
        film = self.run.frames > 1
        if film:
            video = index // self.run.frames
            heats = self.frames(word, video, layers=layers, occurrence=occurrence)
        else:
            heats = self.steps(word, index, layers=layers, occurrence=occurrence)
        own = [heat.picture for heat in heats] if film and on is None else None
        pictures: Sequence[Image.Image | None] = (
            previews or own or self._previews(index, picture) or [picture]
        )
        shown = animation.frames(
            heats, pictures, label=str(word), opacity=opacity, colormap=colormap,
            axis="frame" if film else "step",
        )  # fmt: skip
        animation.animate(path, shown, milliseconds=milliseconds)

    def _previews(self, index: int, picture: Image.Image | None) -> list[Image.Image] | None:
        estimates = self.run.estimates
        if estimates is None or picture is None:
            return None
        return animation.linear_previews(estimates[: self.run.done, index].float(), picture)

    def report(
        self,
        path: str | os.PathLike[str],
        image: int | None = None,
        *,
        on: Image.Image | Sequence[Image.Image] | None = None,
        why: Attribution | None = None,
    ) -> None:
        """Write one self-contained HTML page: words to point at, steps and layers to slide.

        Args:
            path: where to.
            image: index of the only image to show; by default the run's first sixteen, or sixteen
                frames spread over its videos.
            on: a picture to draw on for each image shown, or one picture for one image; those
                recorded with the images, or grey, by default.
            why: an attribution of the first image shown: a card of each word has its attention
                map above, and below where it acts.

        Raises:
            ValueError: ``on`` are not as many pictures as images are shown.
        """
        count, video = len(self.run.prompt_of), self.run.frames > 1
        indices: Sequence[int] = range(min(16, count))
        if image is not None:
            indices = [self._index(image)]
        elif video:
            indices = sheets.spread(count, 16)
        canvases: list[Any] = [None] * len(indices)
        if on is not None:
            canvases = list(on) if isinstance(on, list | tuple) else [on]
        if len(canvases) != len(indices):
            raise ValueError(
                f"on= has {len(canvases)} pictures for {len(indices)} images: pass one for each, "
                "or choose an image with image="
            )
        shown = [
            report.Subject(
                self.run, index, self._canvas(index, canvas), films.name(self.run, index)
            )
            for index, canvas in zip(indices, canvases, strict=True)
        ]
        if why is None:
            report.write(path, shown)
        else:
            heading = "Above, where a word is read; below, where it acts"
            report.write(path, shown, self._cards(why, shown[0]), heading)

    def _cards(self, why: Attribution, shown: Subject) -> list[Card]:
        """Return a card for each word of an attribution, the largest score first."""
        cards = []
        for word, places in sorted(zip(why.words, why.positions, strict=True), key=why.rank):
            under = shown.picture if shown.picture is not None else why.picture
            read = self.heatmap(list(places), shown.image).overlay(under)
            acts = None if why.maps is None else why.map(word).overlay(under)
            text = f"{why.how}: {units.number_text(why.scores[word])}"
            cards.append(Card(word, text, read, acts))
        return cards

    def _canvas(self, index: int, on: Any) -> Image.Image | None:
        """Return the picture to draw on: the one given, or the one recorded with an image."""
        if on is None:
            return self._picture(index)
        if not isinstance(on, Image.Image):
            raise ValueError(
                f"on= must be a picture to draw on (PIL), got {on!r}; an image of the run is "
                "chosen by its index, image="
            )
        return on

    # -- files

    def save(
        self,
        path: str | os.PathLike[str],
        images: Image.Image | Sequence[Image.Image] | None = None,
    ) -> None:
        """Write the complete steps of every run to one safetensors file.

        Args:
            path: where to; what is there is replaced when the new file is whole.
            images: of the latest run, kept in the file as PNG; those recorded by default.

        Raises:
            ValueError: nothing is recorded yet, or the images aren't as many pictures as the run's.
        """
        runs = list(self.runs)
        if images is not None:
            given = [images] if isinstance(images, Image.Image) else list(images)
            if not all(isinstance(one, Image.Image) for one in given):
                kinds = ", ".join(type(one).__name__ for one in given)
                raise ValueError(f"images must be PIL images, got {kinds}")
            if len(given) != len(self.run.prompt_of):
                raise ValueError(
                    f"images has {len(given)} pictures; this run has {len(self.run.prompt_of)}"
                )
            runs[-1] = replace(self.run, images=given)
        files.save(path, runs)

    # -- in a notebook

    def __repr__(self) -> str:
        if not self.runs:
            return "Trace(nothing recorded yet)"
        run = self.run
        facts = (
            f"{run.done} of {len(run.timesteps)} steps, {len(run.layers)} layers, "
            f"{len(run.positions)} tokens, {films.count(run)}, "
            f"latent {run.latent[0]}x{run.latent[1]}, kept: {', '.join(sorted(run.keep)) or 'none'}"
        )
        more = f", the latest of {len(self)} runs" if len(self) > 1 else ""
        texts = ", ".join(map(repr, self.prompts))
        return f"Trace({texts}: {facts}; {units.size_text(self.nbytes)}{more})"

    def _repr_html_(self) -> str:
        summary = f"<p><code>{html.escape(repr(self))}</code></p>"
        if not self.runs or not self.run.done:
            return summary
        cells = "".join(self._cell(word) for word in self.words[:12])
        return f"{summary}<div style='display:flex;flex-wrap:wrap;gap:8px'>{cells}</div>"

    def _cell(self, word: str) -> str:
        shown = self.heatmap(word).overlay()
        shown.thumbnail((144, 144))
        caption = f"<figcaption style='text-align:center'>{html.escape(word)}</figcaption>"
        return f"<figure style='margin:0'><img src='{sheets.data_url(shown)}'>{caption}</figure>"


def load(path: str | os.PathLike[str]) -> Trace:
    """Read a trace that was saved, or a folder: streamed to, or written by the command line.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        FileError: it is not a recording, is damaged, or was written by a newer version.
    """
    return Trace(files.load(path))
