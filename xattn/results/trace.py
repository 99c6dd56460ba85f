"""What was recorded, and the questions one can ask of it."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from xattn import units
from xattn.maps import daam, refine, select
from xattn.maps.select import Asked, Heads, Steps
from xattn.records import files
from xattn.records.run import LayerFilter, Run
from xattn.results.asking import Asking
from xattn.results.evolution import Evolution, evolution
from xattn.results.heatmap import HeatMap
from xattn.views import animation, colours, sheets
from xattn.views.report import page as report

Subject = int | Image.Image | None  # an image by its index, as a picture, or the first


@dataclass(repr=False)
class Trace(Asking):
    """The runs that were recorded, one for each call of the pipeline.

    Every question goes to the latest run; ``trace[0]`` is a trace of the first alone. An
    ``image`` is the index of an image in the order of ``pipe(...).images``, or a picture to draw
    on, which then stands for the first image; by default the first, drawn on the picture that was
    recorded with it, or on grey.

    >>> with xattn.record(pipe) as trace:
    ...     image = pipe("a red car").images[0]
    >>> trace.heatmap("red").overlay(image)

    Attributes:
        runs: what each call left, the latest last.
    """

    runs: list[Run] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Trace:
        return Trace([self.runs[index]])

    def __iter__(self) -> Iterator[Trace]:
        return (Trace([run]) for run in self.runs)

    def __bool__(self) -> bool:
        return True  # an empty trace is still a trace

    # -- what it is of

    @property
    def run(self) -> Run:
        """The latest run.

        Raises:
            ValueError: there is none yet.
        """
        if not self.runs:
            raise ValueError("nothing recorded yet: call the pipeline inside the with block")
        return self.runs[-1]

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the first prompt that were kept."""
        return select.kept_words(self.run)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as text."""
        return tuple(prompt.text for prompt in self.run.prompts)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The schedule's timestep of each step."""
        return self.run.timesteps

    @property
    def nbytes(self) -> int:
        """The bytes that the maps of all runs take."""
        return sum(run.nbytes for run in self.runs)

    # -- maps

    def heatmap(
        self,
        word: Asked,
        image: Subject = None,
        *,
        steps: Steps = None,
        layers: LayerFilter = None,
        heads: Heads = None,
        occurrence: int | None = None,
        refined: bool = False,
    ) -> HeatMap:
        """Return where a word acts (Tang et al. 2023, section 3), on the latent grid.

        Args:
            word: a word or a phrase of the image's prompt, or token positions.
            image: which image, or a picture.
            steps: an index, a slice or several indices; summed. All by default.
            layers: names, globs, a test of a ``Layer``, "all", or "daam" for the paper's own,
                which are the default too.
            heads: an index or several; averaged. All by default.
            occurrence: which of a word that comes several times, from 0; all by default.
            refined: lets the map flow once along the image's attention to itself, so that it
                fills what looks alike: truer as a mask. Needs ``record(..., affinity=True)``.

        Raises:
            ValueError: something was asked for that is not in the recording.
        """
        run, (index, picture) = self.run, self._subject(image)
        positions = select.word_positions(run, word, index, occurrence)
        tokens = daam.token_maps(run, positions, index, steps=steps, layers=layers, heads=heads)
        if refined:
            tokens = refine.refined(run, tokens, index)
        used = select.step_indices(run, steps) if "step" in run.keep else range(run.done)
        return self._heat(tokens, word, index, picture, positions, steps=list(used))

    def steps(
        self,
        word: Asked,
        image: Subject = None,
        *,
        layers: LayerFilter = None,
        heads: Heads = None,
        occurrence: int | None = None,
    ) -> list[HeatMap]:
        """Return the heat map of each step that is complete."""
        run, (index, picture) = self.run, self._subject(image)
        positions = select.word_positions(run, word, index, occurrence)
        stack = daam.step_token_maps(run, positions, index, layers=layers, heads=heads)
        return [
            self._heat(tokens, word, index, picture, positions, steps=[step])
            for step, tokens in enumerate(stack)
        ]

    def layers(
        self,
        word: Asked,
        image: Subject = None,
        *,
        steps: Steps = None,
        layers: LayerFilter = "all",
        heads: Heads = None,
        occurrence: int | None = None,
    ) -> dict[str, HeatMap]:
        """Return the heat map of each layer alone, by its name, on the latent grid."""
        run, (index, picture) = self.run, self._subject(image)
        positions = select.word_positions(run, word, index, occurrence)
        heats = {}
        for n in select.layers_of(run, layers)[0]:
            native = daam.layer_maps(run, n, positions, index, steps=steps, heads=heads)
            tokens, name = daam.to_grid(native, run.latent), run.layers[n].name
            heats[name] = self._heat(tokens, word, index, picture, positions, layer=name)
        return heats

    def evolution(
        self,
        word: Asked,
        image: Subject = None,
        *,
        layers: LayerFilter = "all",
        occurrence: int | None = None,
    ) -> Evolution:
        """Return the entropy of a word's map in each layer at each step."""
        run, (index, _) = self.run, self._subject(image)
        return evolution(run, word, index, layers=layers, occurrence=occurrence)

    # -- pictures

    def grid(
        self,
        words: Sequence[Asked] | None = None,
        image: Subject = None,
        steps: Sequence[int] | None = None,
        *,
        layers: LayerFilter = None,
        opacity: float = colours.OPACITY,
        colormap: str = colours.COLORMAP,
    ) -> Image.Image:
        """Draw a row for each word: the sum over the steps, then each of some steps.

        The steps of a row share one scale; under each cell stands the value of its last colour. By
        default it takes every word, and six steps spread over the run; without a step axis the sum
        alone.
        """
        run, (index, picture) = self.run, self._subject(image)
        wanted = list(select.kept_words(run, index) if words is None else words)
        if "step" in run.keep:
            chosen = select.step_indices(run, sheets.spread(run.done) if steps is None else steps)
        else:
            chosen = select.step_indices(run, steps)[:0]
        cells, notes = [], []
        for word in wanted:
            whole = self.heatmap(word, index, layers=layers)
            heats = [self.heatmap(word, index, layers=layers, steps=[s]) for s in chosen]
            top = max((heat.maximum for heat in heats), default=0.0)
            tops = [whole.maximum, *[top] * len(heats)]
            cells.append([
                colours.overlay(heat, picture, opacity=opacity, colormap=colormap, top=most)
                for heat, most in zip([whole, *heats], tops, strict=True)
            ])  # fmt: skip
            notes.append([f"0 to {units.number_text(most)}" for most in tops])
        columns = ["all steps", *(f"step {s}" for s in chosen)]
        return sheets.table(cells, [str(word) for word in wanted], columns, notes=notes)

    def matrix(
        self,
        word: Asked,
        image: Subject = None,
        *,
        steps: Steps = None,
        occurrence: int | None = None,
        colormap: str = colours.COLORMAP,
    ) -> Image.Image:
        """Draw a word's map in each head of each layer; needs the head axis.

        Each map is on the layer's own grid and scaled to its own maximum, which stands under it.
        """
        run, (index, _) = self.run, self._subject(image)
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
        image: Subject,
        path: str | os.PathLike[str],
        *,
        previews: Sequence[Image.Image] | None = None,
        layers: LayerFilter = None,
        occurrence: int | None = None,
        opacity: float = colours.OPACITY,
        colormap: str = colours.COLORMAP,
        milliseconds: int = 120,
    ) -> None:
        """Write an animation over the steps: GIF, WebP or PNG, by the path's ending.

        Args:
            word: whose map lies over the image.
            image: which image, or a picture.
            path: ends in .gif, .webp, .png or .apng.
            previews: the image as it forms, one for each step. By default what the denoiser took
                it to be, where ``record(previews=True)`` kept that, else the final image.
            layers: as for ``heatmap``.
            occurrence: as for ``heatmap``.
            opacity: of the colours.
            colormap: a name of matplotlib's.
            milliseconds: how long a step is shown.
        """
        index, picture = self._subject(image)
        heats = self.steps(word, image, layers=layers, occurrence=occurrence)
        pictures: Sequence[Image.Image | None] = (
            previews or self._previews(index, picture) or [picture]
        )
        frames = animation.frames(
            heats, pictures,
            label=str(word), opacity=opacity, colormap=colormap,
        )  # fmt: skip
        animation.animate(path, frames, milliseconds=milliseconds)

    def _previews(self, index: int, picture: Image.Image | None) -> list[Image.Image] | None:
        estimates = self.run.estimates
        if estimates is None or picture is None:
            return None
        return animation.linear_previews(estimates[: self.run.done, index].float(), picture)

    def report(self, path: str | os.PathLike[str], image: Subject = None) -> None:
        """Write one self-contained HTML page: words to point at, steps and layers to slide.

        It shows one image where ``image`` says which, the run's first sixteen otherwise.
        """
        run = self.run
        indices = (
            [self._subject(image)[0]] if image is not None else range(min(16, len(run.prompt_of)))
        )
        shown = []
        for index in indices:
            picture = self._subject(index if image is None else image)[1]
            shown.append(report.Subject(run, index, picture, f"image {index}"))
        report.write(path, shown)

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
        images = len(run.prompt_of)
        facts = (
            f"{run.done} of {len(run.timesteps)} steps, {len(run.layers)} layers, "
            f"{len(run.positions)} tokens, {images} image{'s' * (images > 1)}, "
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

    # -- helpers

    def _subject(self, image: Subject) -> tuple[int, Image.Image | None]:
        """Return the index of an image, and the picture to draw on."""
        run = self.run
        if isinstance(image, Image.Image):
            same = [i for i, known in enumerate(run.images) if known is image]
            if not same and run.images and len(run.prompt_of) > 1:
                raise ValueError(
                    f"this picture is none of the run's {len(run.prompt_of)} images: say which is "
                    "meant, image=0 to image="
                    f"{len(run.prompt_of) - 1}, and pass the picture to overlay()"
                )
            return (same[0] if same else 0), image
        index = select.image_index(run, image or 0)
        return index, run.images[index] if index < len(run.images) else None

    def _heat(
        self, tokens: Any, word: Asked, index: int, picture: Image.Image | None,
        positions: Sequence[int], **meta: Any,
    ) -> HeatMap:  # fmt: skip
        """Return the mean over a word's tokens, (tokens, height, width), as a heat map."""
        about = {
            "prompt": self.run.prompt(index).text,
            "image": index,
            "positions": list(positions),
            **meta,
        }
        return HeatMap(tokens.mean(0).numpy(), str(word), about, picture)


def load(path: str | os.PathLike[str]) -> Trace:
    """Read a trace that was saved, or a folder that a recording was streamed to.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        FileError: it is not a recording, is damaged, or was written by a newer version.
    """
    return Trace(files.load(path))
