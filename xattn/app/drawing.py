"""What the app does, without its buttons: one pipeline, many visitors, bounds, and scripts.

Visitors share the pipeline, which draws for one at a time. What a visitor drew belongs to a
``Drawing`` of their own, which nothing else refers to.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from xattn.api.edit import edit
from xattn.api.record import record
from xattn.app.changes import Change, make_edits
from xattn.app.script import script
from xattn.app.settings import Limits, Settings
from xattn.edits.kinds import Edit, LocalBlend
from xattn.models.sizes import size_factor, usual_size
from xattn.results.edit import EditResult
from xattn.results.trace import Trace
from xattn.session.pipeline import PipelineOrigin

Progress = Callable[[int, int], None]


LEGIBLE = 512  # pixels: pictures with a map on them are at least so large


@dataclass
class Drawing:
    """What a visitor drew last: an image, what its words attend to, and what was edited.

    Attributes:
        settings: what was asked for.
        image: what came.
        trace: its recording.
        folder: where its files are; removed with it.
        result: the edit made of it, if any.
        edits: what was edited.
    """

    settings: Settings
    image: Image.Image
    trace: Trace
    folder: Path
    result: EditResult | None = None
    edits: list[list[Edit]] = field(default_factory=list)

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Each word of the prompt with where it begins and ends."""
        return [(word.text, word.start, word.end) for word in self.trace.run.prompts[0].words]

    @property
    def layers(self) -> list[str]:
        """The layers' names."""
        return [layer.name for layer in self.trace.run.layers]

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
        heat = self.trace.heatmap(
            self.positions(word),
            steps=None if step == 0 else step - 1,
            layers=None if layer == 0 else self.layers[layer - 1],
        )
        return heat.overlay(enlarged(self.image), opacity=opacity)

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
    """A pipeline that visitors share, one at a time.

    Attributes:
        pipe: the pipeline.
        model: what ``--model`` said, None for the bundled one.
        limits: what a visitor can ask for.
        root: the folder for files; by default a new one, removed by ``close``.
    """

    def __init__(
        self,
        pipe: Any,
        model: str | None = None,
        limits: Limits | None = None,
        root: Path | None = None,
    ) -> None:
        PipelineOrigin(pipe)  # says early what can't be recorded
        self.pipe = pipe
        self.model = model
        self.limits = limits or Limits()
        self.root = root or Path(tempfile.mkdtemp(prefix="xattn-app-"))
        self._lock = threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    @property
    def factor(self) -> int:
        """The number of pixels that height and width must be multiples of."""
        return size_factor(self.pipe)

    @property
    def sides(self) -> tuple[int, int]:
        """The model's own (height, width), within bounds."""
        most = self.limits.side - self.limits.side % self.factor
        height, width = (min(side, most) for side in usual_size(self.pipe))
        return height, width

    def draw(self, settings: Settings, progress: Progress) -> Drawing:
        """Draw and record a prompt.

        Raises:
            ValueError: something is out of bounds.
        """
        import torch

        settings.check(self.limits, self.factor)
        with self._lock, record(self.pipe) as trace:
            image = self.pipe(
                settings.prompt,
                generator=torch.Generator().manual_seed(int(settings.seed)),
                callback_on_step_end=_watch(progress),
                **settings.arguments(),
            ).images[0]
        drawing = Drawing(settings, image, trace, Path(tempfile.mkdtemp(dir=self.root)))
        with _whole(drawing):
            trace.save(drawing.folder / "trace.safetensors", [image])
            trace.report(drawing.folder / "report.html")
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

        spans, text = drawing.spans, drawing.settings.prompt
        if len(text) + len(added) > self.limits.prompt:
            raise ValueError(f"the prompt is longer than {self.limits.prompt} characters")
        timing = {"cross_steps": float(cross_steps), "self_steps": float(self_steps)}
        parts: list[tuple[dict[int, Change], str]] = [(dict(changes), added.strip())]
        if apart:
            parts = [({n: change}, "") for n, change in sorted(changes.items())]
            parts += [({}, added.strip())] if added.strip() else []
        edits = [make_edits(text, spans, each, more, **timing) for each, more in parts]
        edits = [each for each in edits if each]
        if not edits:
            raise ValueError("nothing is changed: click a word, and give it another text or weight")
        if len(edits) > self.limits.edits:
            raise ValueError(f"{len(edits)} edits: at most {self.limits.edits} are drawn together")
        if places:
            blend = LocalBlend([spans[n][0] for n in places])
            edits = [[*each, blend] for each in edits]
        with self._lock:
            result = edit(
                self.pipe,
                text,
                *edits,
                generator=torch.Generator().manual_seed(int(drawing.settings.seed)),
                callback_on_step_end=_watch(progress),
                **drawing.settings.arguments(),
            )
        folder = Path(tempfile.mkdtemp(dir=self.root))
        edited = Drawing(drawing.settings, drawing.image, drawing.trace, folder, result, edits)
        with _whole(edited):
            if result.trace is not None:
                result.trace.save(folder / "trace.safetensors", [result.source, *result.images])
            result.report(folder / "report.html")
            self._write_script(edited)
        return edited

    def close(self) -> None:
        """Remove every file."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _write_script(self, drawing: Drawing) -> None:
        dtype = str(self.pipe.dtype)
        text = script(drawing.settings, drawing.edits, self.model, dtype)
        (drawing.folder / "script.py").write_text(text, encoding="utf-8")


def _watch(progress: Progress) -> Callable[..., dict[str, Any]]:
    def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(step + 1, int(getattr(pipe, "num_timesteps", 0)) or step + 1)
        return {}

    return watch
