"""What the app does, without its buttons: one pipeline, many visitors, bounds, and scripts.

Visitors share the pipeline, which draws for one at a time. What a visitor drew belongs to a
``Drawing`` of their own, which nothing else refers to.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from xattn.edits import Edit, LocalBlend, Refine, Replace, Reweight
from xattn.options import Options
from xattn.sessions import record
from xattn.siblings import EditResult, edit
from xattn.sources import PipelineSource
from xattn.text import check_text, matches
from xattn.toyland.bundle import DTYPE
from xattn.trace import Trace

Progress = Callable[[int, int], None]
LEGIBLE = 512  # pixels: pictures with a map on them are at least so large


@dataclass(frozen=True)
class Limits:
    """What a visitor can ask for at most.

    Attributes:
        steps: of a run.
        side: of an image, in pixels.
        edits: edited images in one run.
        prompt: characters.
    """

    steps: int = 50
    side: int = 1024
    edits: int = 4
    prompt: int = 1000


@dataclass(frozen=True)
class Settings:
    """What a visitor asked for."""

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 30
    width: int = 512
    height: int = 512
    guidance: float = 7.5

    def check(self, limits: Limits, factor: int) -> None:
        """Refuses what is out of bounds, whatever the page let through.

        Raises:
            ValueError: something is, and what the bounds are.
        """
        for name in ("prompt", "negative"):
            check_text(getattr(self, name), f"the {name}")
            if len(getattr(self, name)) > limits.prompt:
                raise ValueError(f"the {name} is longer than {limits.prompt} characters")
        if not self.prompt.strip():
            raise ValueError("the prompt is empty: write what the image should show")
        _within("steps", self.steps, 1, limits.steps)
        _within("seed", self.seed, 0, 2**63 - 1)
        _within("guidance", self.guidance, 0, 30)
        for name in ("width", "height"):
            side = getattr(self, name)
            _within(name, side, factor, limits.side)
            if side % factor:
                raise ValueError(f"{name} {side} must be a multiple of {factor}")

    def arguments(self) -> dict[str, Any]:
        """Gives the pipeline's arguments, but for the generator."""
        found: dict[str, Any] = {
            "num_inference_steps": int(self.steps),
            "height": int(self.height),
            "width": int(self.width),
            "guidance_scale": float(self.guidance),
        }
        if self.negative.strip():
            found["negative_prompt"] = self.negative
        return found


def _within(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} {value} is out of bounds: {least} to {most}")


@dataclass(frozen=True)
class Change:
    """What becomes of a word: another text (or none), another weight.

    Attributes:
        text: what stands in its place.
        weight: how strong it is; 1 as it was.
    """

    text: str
    weight: float = 1.0


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
        """Gives the token positions of a word, by its number in ``spans``."""
        return self.trace.run.prompts[0].words[word].positions

    def overlay(self, word: int, step: int = 0, layer: int = 0, opacity: float = 0.65) -> Any:
        """Draws a word's map on the image.

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
        """Removes its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _whole(drawing: Drawing) -> Iterator[None]:
    """Removes a drawing's files when the block, which writes them, fails."""
    try:
        yield
    except BaseException:
        drawing.discard()
        raise


def enlarged(image: Image.Image) -> Image.Image:
    """Gives an image that is large enough to see a map on it."""
    longer = max(image.size)
    if longer >= LEGIBLE:
        return image
    width, height = (round(side * LEGIBLE / longer) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


class Studio:
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
        PipelineSource(pipe, Options())  # says early what can't be recorded
        self.pipe = pipe
        self.model = model
        self.limits = limits or Limits()
        self.root = root or Path(tempfile.mkdtemp(prefix="xattn-app-"))
        self._lock = threading.Lock()
        pipe.set_progress_bar_config(disable=True)

    @property
    def factor(self) -> int:
        """What height and width must be multiples of."""
        return math.lcm(8, int(getattr(self.pipe, "vae_scale_factor", 8)))

    @property
    def sides(self) -> tuple[int, int]:
        """The model's own (height, width), within bounds."""
        sample = self.pipe.unet.config.sample_size
        sides = sample if isinstance(sample, list | tuple) else (sample, sample)
        most = self.limits.side - self.limits.side % self.factor
        height, width = (min(int(s) * int(self.pipe.vae_scale_factor), most) for s in sides)
        return height, width

    def draw(self, settings: Settings, progress: Progress) -> Drawing:
        """Draws and records a prompt.

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
            trace.report(drawing.folder / "report.html", image)
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
        """Draws edited siblings of a drawing, from the same noise.

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
        """Removes every file."""
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


# -- from changes to edits


def make_edits(
    text: str,
    spans: Sequence[tuple[str, int, int]],
    changes: Mapping[int, Change],
    added: str = "",
    **timing: Any,
) -> list[Edit]:
    """Gives the edits that make of a prompt what its changed words say.

    Words that become as many words are a ``Replace``, which keeps the layout best; otherwise the
    whole new prompt is a ``Refine``.
    """
    target, starts = _changed(text, spans, changes)
    if added.strip():
        target = f"{target.rstrip()} {added.strip()}"
    if not target.strip():
        raise ValueError("no word is left of the prompt; to remove one, give it the weight 0")
    swaps = [
        (n, spans[n][0], change.text.strip())
        for n, change in sorted(changes.items())
        if change.text.strip() != spans[n][0]
    ]
    found: list[Edit] = []
    if added.strip() or any(len(old.split()) != len(new.split()) for _, old, new in swaps):
        found.append(Refine(target, **timing))
    elif swaps:
        found += _replaces(text, spans, swaps, timing)
    for n, change in sorted(changes.items()):
        word = change.text.strip()
        if change.weight == 1 or not word:
            continue
        places = [start for start, _ in matches(target, word)]
        occurrence = places.index(starts[n]) if len(places) > 1 and starts[n] in places else None
        found.append(Reweight({word: float(change.weight)}, occurrence=occurrence, **timing))
    return found


def _changed(
    text: str, spans: Sequence[tuple[str, int, int]], changes: Mapping[int, Change]
) -> tuple[str, dict[int, int]]:
    """Gives the new prompt, and where each changed word begins in it."""
    pieces, starts, at, length = [], {}, 0, 0
    for n, (word, start, end) in enumerate(spans):
        new = changes[n].text.strip() if n in changes else word
        before = text[at:start]
        if not new:
            before = before[:-1] if before.endswith(" ") else before
        starts[n] = length + len(before)
        pieces += [before, new]
        length += len(before) + len(new)
        at = end
    return "".join([*pieces, text[at:]]).rstrip(), starts


def _replaces(
    text: str,
    spans: Sequence[tuple[str, int, int]],
    swaps: Sequence[tuple[int, str, str]],
    timing: Mapping[str, Any],
) -> list[Edit]:
    if all(len(list(matches(text, old))) == 1 for _, old, _ in swaps):
        if len(swaps) == 1:
            return [Replace(swaps[0][1], swaps[0][2], **timing)]
        return [Replace({old: new for _, old, new in swaps}, **timing)]
    found: list[Edit] = []
    for n, old, new in reversed(swaps):  # the last first: what is before it keeps its count
        places = [start for start, _ in matches(text, old)]
        which = places.index(spans[n][1]) if spans[n][1] in places else None
        found.append(Replace(old, new, occurrence=which, **timing))
    return found


# -- the same in Python


def script(
    settings: Settings, edits: Sequence[Sequence[Edit]], model: str | None, dtype: str
) -> str:
    """Gives a Python program that draws the same."""
    arguments = settings.arguments()
    options = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    lines = ["import torch", "", "import xattn", ""]
    if model is None:
        lines += [f"pipe = xattn.demo(dtype={dtype})"]
    else:
        lines[1:2] = [
            "from accelerate import PartialState",
            "from diffusers import DiffusionPipeline",
            "",
        ]
        lines += [
            f"pipe = DiffusionPipeline.from_pretrained({model!r}, {DTYPE}={dtype})",
            "pipe = pipe.to(PartialState().device)",
        ]
    lines += [f"prompt = {settings.prompt!r}", f"options = dict(\n{options})"]
    lines += [
        "",
        "with xattn.record(pipe) as trace:",
        f"    generator = torch.Generator().manual_seed({int(settings.seed)})",
        "    image = pipe(prompt, generator=generator, **options).images[0]",
        'image.save("image.png")',
        'trace.grid(image=image).save("words.png")',
        'trace.report("report.html", image)',
    ]
    if edits:
        siblings = "".join(f"    {_source(each)},\n" for each in edits)
        lines += [
            "",
            f"generator = torch.Generator().manual_seed({int(settings.seed)})",
            "result = xattn.edit(",
            "    pipe,",
            f"    prompt,\n{siblings}    generator=generator,",
            "    **options,",
            ")",
            'result.strip().save("edits.png")',
        ]
    return "\n".join(lines) + "\n"


def _source(edits: Sequence[Edit]) -> str:
    return "[" + ", ".join(f"xattn.{_call(each)}" for each in edits) + "]"


def _call(edit: Edit) -> str:
    timing = [
        f"{name}={value!r}"
        for name in ("occurrence", "cross_steps", "self_steps")
        if (value := getattr(edit, name, None)) is not None
    ]
    if isinstance(edit, Replace):
        swaps = dict(edit.swaps)
        pair = [repr(part) for part in next(iter(swaps.items()))]
        return f"Replace({', '.join((pair if len(swaps) == 1 else [repr(swaps)]) + timing)})"
    if isinstance(edit, Refine):
        return f"Refine({', '.join([repr(edit.prompt), *timing])})"
    if isinstance(edit, Reweight):
        return f"Reweight({', '.join([repr(dict(edit.items)), *timing])})"
    return f"LocalBlend({list(edit.words)!r})"
