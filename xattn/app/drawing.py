"""What the app does, without its buttons: shared pipelines, many visitors, bounds, and scripts.

Visitors share the pipelines, which draw for one at a time. What a visitor drew belongs to a
``Drawing`` of their own, which nothing else refers to.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from xattn.api.edit import edit
from xattn.api.probe import probe
from xattn.api.record import record
from xattn.api.steer import steer
from xattn.app.changes import Change, make_edits
from xattn.app.script import script
from xattn.app.settings import Limits, Settings
from xattn.app.shelf import Shelf
from xattn.attribution.attribute import attribute
from xattn.edits.kinds import Edit, LocalBlend
from xattn.inversion.inversion import Inversion
from xattn.models.sizes import usual_size
from xattn.results.attribution import Attribution
from xattn.results.edit import EditResult
from xattn.results.places import WordsAt
from xattn.results.trace import Trace
from xattn.text.pairs import leading
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import scene

Progress = Callable[[int, int], None]


SCENES = (30_000_012, 30_000_004, 30_000_009)  # given as examples of pictures


LEGIBLE = 512  # pixels: pictures with a map on them are at least so large


@dataclass
class Drawing:
    """What a visitor drew or gave last: an image, what its words attend to, and what was edited.

    Attributes:
        settings: what was asked for.
        image: what came, or the picture given, as the model takes it.
        trace: its recording.
        folder: where its files are; removed with it.
        result: the edit made of it, if any.
        edits: what was edited.
        given: the name of the given picture's file; None for an image that was drawn.
        inversion: of the given picture, once it was edited.
    """

    settings: Settings
    image: Image.Image
    trace: Trace
    folder: Path
    result: EditResult | None = None
    edits: list[list[Edit]] = field(default_factory=list)
    given: str | None = None
    inversion: Inversion | None = None

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Each word of the prompt with where it begins and ends."""
        return [(word.text, word.start, word.end) for word in self.trace.run.prompts[0].words]

    @property
    def layers(self) -> list[str]:
        """The layers' names."""
        return [layer.name for layer in self.trace.run.layers]

    @property
    def leading(self) -> int | None:
        """The number of the word to look at first, if there is any."""
        prompt = self.trace.run.prompts[0]
        word = leading(prompt)
        return None if word is None else prompt.words.index(word)

    def positions(self, word: int) -> tuple[int, ...]:
        """Return the token positions of a word, by its number in ``spans``."""
        return self.trace.run.prompts[0].words[word].positions

    def overlay(self, word: int, step: int = 0, layer: int = 0, opacity: float = 0.65) -> Any:
        """Draw a word's map on the image.

        Args:
            word: its number in ``spans``.
            step: 0 for the sum over the steps, else the step, from 1.
            layer: 0 for the mean of the layers, else the layer, from 1.
            opacity: of the colours.
        """
        heat = self.trace.heatmap(self.positions(word), **self._selected(step, layer))
        return heat.overlay(enlarged(self.image), opacity=opacity)

    def at(self, place: tuple[float, float], step: int = 0, layer: int = 0) -> WordsAt:
        """Return the words that act at a place, (x, y) in [0, 1]; ``overlay`` has the rest."""
        return self.trace.at(place, **self._selected(step, layer))

    def _selected(self, step: int, layer: int) -> dict[str, Any]:
        return {
            "steps": None if step == 0 else step - 1,
            "layers": None if layer == 0 else self.layers[layer - 1],
        }

    def discard(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _whole(drawing: Drawing) -> Iterator[None]:
    """Remove a drawing's files when the block, which writes them, fails."""
    try:
        yield
    except BaseException:
        drawing.discard()
        raise


def enlarged(image: Image.Image) -> Image.Image:
    """Return an image that is large enough to see a map on it."""
    longer = max(image.size)
    if longer >= LEGIBLE:
        return image
    width, height = (round(side * LEGIBLE / longer) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


class Service:
    """Pipelines that visitors share, one visitor at a time.

    Attributes:
        shelf: the pipelines.
        model: what ``--model`` said of the first one, None for the bundled one.
        limits: what a visitor can ask for.
        root: the folder for files; by default a new one, removed by ``close``.
    """

    def __init__(
        self,
        pipe: Any,
        model: str | None = None,
        limits: Limits | None = None,
        root: Path | None = None,
        others: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        self.shelf = Shelf(pipe, model, others)
        self.model = model
        self.limits = limits or Limits()
        self.root = root or Path(tempfile.mkdtemp(prefix="xattn-app-"))
        self._lock = threading.Lock()

    def sides(self, model: str = "") -> tuple[int, int]:
        """Return a model's own (height, width), within bounds."""
        most = self.limits.side - self.limits.side % self.shelf.factor(model)
        height, width = (min(side, most) for side in usual_size(self.shelf.pipe(model)))
        return height, width

    def draw(self, settings: Settings, progress: Progress) -> Drawing:
        """Draw and record a prompt.

        Raises:
            ValueError: something is out of bounds.
        """
        import torch

        settings.check(self.limits, self.shelf.factor(settings.model))
        pipe = self.shelf.pipe(settings.model)
        with self._lock, record(pipe) as trace, steer(pipe, *settings.goals()):
            image = pipe(
                settings.prompt,
                generator=torch.Generator().manual_seed(int(settings.seed)),
                callback_on_step_end=_watch(progress),
                **settings.arguments(),
            ).images[0]
        drawing = Drawing(settings, image, trace, Path(tempfile.mkdtemp(dir=self.root)))
        return self._written(drawing)

    def look(self, picture: str | os.PathLike[str], settings: Settings) -> Drawing:
        """Look at a given picture for the words of a text.

        Args:
            picture: the picture's file.
            settings: the text, and what edits of the picture are drawn with; width and height
                become those that the model takes the picture at.

        Raises:
            TypeError: the model can't be asked about a given picture.
            ValueError: something is out of bounds, or the file is not a picture.
        """
        height, width = self.sides(settings.model)
        settings = replace(settings, width=width, height=height)
        settings.check(self.limits, self.shelf.factor(settings.model))
        pipe = self.shelf.pipe(settings.model)
        with self._lock:
            trace = probe(pipe, picture, settings.prompt, seed=int(settings.seed))
        (image,) = trace.run.images  # the picture as the model took it
        width, height = image.size
        taken = replace(settings, width=width, height=height)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        return self._written(Drawing(taken, image, trace, folder, given=Path(picture).name))

    def explain(self, drawing: Drawing, how: str) -> Attribution:
        """Measure what each word causes in an image; ``how`` as for ``xattn.attribute``."""
        with self._lock:
            return attribute(self.shelf.pipe(drawing.settings.model), drawing.trace, how=how)

    def _written(self, drawing: Drawing) -> Drawing:
        with _whole(drawing):
            drawing.trace.save(drawing.folder / "trace.safetensors", [drawing.image])
            drawing.trace.report(drawing.folder / "report.html")
            self._write_script(drawing)
        return drawing

    def edit(
        self,
        drawing: Drawing,
        changes: Mapping[int, Change],
        progress: Progress,
        *,
        added: str = "",
        apart: bool = False,
        places: Sequence[int] = (),
        cross_steps: float = 0.8,
        self_steps: float = 0.4,
    ) -> Drawing:
        """Draw edited siblings of a drawing, from the same noise.

        Args:
            drawing: what is edited.
            changes: what becomes of words, by their numbers.
            progress: called after each step.
            added: words for the end of the prompt.
            apart: an image for each change, in place of one for all of them.
            places: the words to whose places the edit is kept.
            cross_steps: share of the run in which words follow the source.
            self_steps: share of the run in which the layout follows the source.

        Raises:
            ValueError: nothing is changed, or an edit makes no sense.
        """
        import torch

        timing = {"cross_steps": float(cross_steps), "self_steps": float(self_steps)}
        edits = self._edits(drawing, changes, added, apart, timing)
        if places:
            blend = LocalBlend([drawing.spans[n][0] for n in places])
            edits = [[*each, blend] for each in edits]
        options = drawing.settings.arguments()
        if drawing.given is not None:
            options = _of_picture(drawing, options)
        pipe = self.shelf.pipe(drawing.settings.model)
        with self._lock, steer(pipe, *drawing.settings.goals()):
            result = edit(
                pipe,
                drawing.settings.prompt,
                *edits,
                generator=torch.Generator().manual_seed(int(drawing.settings.seed)),
                callback_on_step_end=_watch(progress),
                **options,
            )
        drawing.inversion = result.inversion
        folder = Path(tempfile.mkdtemp(dir=self.root))
        edited = replace(drawing, folder=folder, result=result, edits=edits)
        with _whole(edited):
            if result.trace is not None:
                result.trace.save(folder / "trace.safetensors", [result.source, *result.images])
            result.report(folder / "report.html")
            self._write_script(edited)
        return edited

    def _edits(
        self,
        drawing: Drawing,
        changes: Mapping[int, Change],
        added: str,
        apart: bool,
        timing: Mapping[str, float],
    ) -> list[list[Edit]]:
        """Return the edits that a visitor's changes are, within bounds."""
        text = drawing.settings.prompt
        if len(text) + len(added) > self.limits.prompt:
            raise ValueError(f"the prompt is longer than {self.limits.prompt} characters")
        parts: list[tuple[dict[int, Change], str]] = [(dict(changes), added.strip())]
        if apart:
            parts = [({n: change}, "") for n, change in sorted(changes.items())]
            parts += [({}, added.strip())] if added.strip() else []
        edits = [make_edits(text, drawing.spans, each, more, **timing) for each, more in parts]
        edits = [each for each in edits if each]
        if not edits:
            raise ValueError("nothing is changed: click a word, and give it another text or weight")
        if len(edits) > self.limits.edits:
            raise ValueError(f"{len(edits)} edits: at most {self.limits.edits} are drawn together")
        return edits

    def examples(self) -> list[tuple[str, str]]:
        """Return pictures to look at, files with their texts: scenes, for a bundled model."""
        if self.model not in (None, *MODELS):
            return []
        folder = self.root / "examples"
        folder.mkdir(exist_ok=True)
        found = []
        for seed in SCENES:
            shown = scene(seed)
            path = folder / f"scene-{seed}.png"
            shown.image.save(path)
            found.append((str(path), shown.caption))
        return found

    def close(self) -> None:
        """Remove every file."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _write_script(self, drawing: Drawing) -> None:
        name = drawing.settings.model
        model = self.model if name in ("", self.shelf.names[0]) else name
        dtype = str(self.shelf.pipe(name).dtype)
        text = script(drawing.settings, drawing.edits, model, dtype, drawing.given)
        (drawing.folder / "script.py").write_text(text, encoding="utf-8")


def _of_picture(drawing: Drawing, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options to edit a given picture with: it is inverted once, and edited often."""
    decided = ["width", "height"]
    known: dict[str, Any] = {"image": drawing.image}
    if drawing.inversion is not None:
        known = {"source": drawing.inversion}
        decided.append("num_inference_steps")
    return {**{name: v for name, v in options.items() if name not in decided}, **known}


def _watch(progress: Progress) -> Callable[..., dict[str, Any]]:
    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(step + 1, int(getattr(pipe, "num_timesteps", 0)) or step + 1)
        return {}

    return watch
