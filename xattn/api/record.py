"""``record(pipe)``: the block in which a pipeline's attention to words is recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from xattn.instruments.affinity import AffinityRecorder
from xattn.instruments.previews import Previews
from xattn.instruments.recorder import Recorder
from xattn.records.options import Options
from xattn.results.trace import Trace
from xattn.session.instrument import Instrument
from xattn.session.loop import Loop, LoopOrigin
from xattn.session.origin import Origin
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened

Words = str | int | Sequence[str | int] | None


@contextmanager
def record(
    pipe: Any,
    *,
    keep: str | Iterable[str] = ("step", "layer"),
    words: Words = None,
    layers: str | Sequence[str] | None = None,
    dtype: torch.dtype = torch.float16,
    to: str | os.PathLike[str] | torch.device = "cpu",
    negative: bool = False,
    prompt: str | Sequence[str] | None = None,
    previews: bool = False,
    affinity: bool = False,
) -> Iterator[Trace]:
    """Record what every word of a prompt attends to, at every step, while the block runs.

    The image stays the pipeline's own, bit for bit, and on leaving the pipeline is as it was
    found. Each call of the pipeline inside the block is a run of its own: the trace answers for
    the latest, ``trace[i]`` for the others.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline (text, img2img, inpaint, ControlNet ...), or an
            ``xattn.Loop`` for a sampling loop of your own.
        keep: which of the axes "step", "layer", "head" stay apart. Those left out are averaged
            while running, in float32, and take no memory.
        words: the words, phrases or token positions to keep; every token of the prompts by
            default. ``range(77)`` keeps the start, end and padding too.
        layers: names or globs of the layers to record, such as "up_blocks.*"; a ControlNet's
            layers are recorded only when named, by "controlnet.*".
        dtype: of the kept maps. Softmax and averages are float32 whatever it is.
        to: a device, or a folder to which maps are streamed, a safetensors file for each step.
        negative: record the negative prompts too, as further images after the others.
        prompt: the text, where a pipeline is given embeddings in its place.
        previews: keep what the denoiser expects the image to be at each step, so that
            ``trace.animate`` shows it as it forms: as many numbers a step as the latents have.
        affinity: keep what the image's places attend to among themselves, the mean over steps and
            layers of the finest grid of at most 32 x 32, for ``heatmap(word, refined=True)``: as
            many numbers as the grid has pairs of cells, 2 MB for each image at 32 x 32.

    Yields:
        A ``Trace``, filled while the block runs.

    Raises:
        MemoryError: before the first step, when the maps would not fit where they go; the error
            names the options that would make them fit.
        TypeError: pipe is neither a pipeline of a known family nor a loop.
        ValueError: an option makes no sense, or a word isn't in the prompt (before any sampling).

    Example:
        >>> pipe = xattn.demo()
        >>> with xattn.record(pipe) as trace:
        ...     image = pipe("a red car on a green lawn").images[0]
        >>> trace.heatmap("red").overlay(image).save("red.png")
    """
    options = Options.of(
        keep=keep,
        words=words,
        layers=layers,
        dtype=dtype,
        to=to,
        negative=negative,
        previews=previews,
        affinity=affinity,
    )
    trace = Trace(runs=[])
    with opened(_origin(pipe, options, prompt), _instruments(options, trace)):
        yield trace


def _instruments(options: Options, trace: Trace) -> list[Instrument]:
    instruments: list[Instrument] = []
    if options.affinity:
        instruments.append(AffinityRecorder())
    if options.previews:
        instruments.append(Previews())
    return [*instruments, Recorder(options, trace.runs)]


def _origin(pipe: Any, options: Options, prompt: str | Sequence[str] | None) -> Origin:
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"record takes a pipeline; for your own loop pass xattn.Loop({type(pipe).__name__}, "
            "tokenizer=, prompt=) in its place"
        )
    if not isinstance(pipe, Loop):
        texts = None if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
        return PipelineOrigin(pipe, texts, negative=options.negative)
    if prompt is not None or not pipe.texts:
        raise ValueError("a recorded loop brings its prompt: xattn.Loop(unet, prompt=...)")
    if options.negative:
        raise ValueError(
            "negative=True needs a pipeline, which knows its negative prompt; for a loop give "
            "the negative prompts as prompt=, and rows= for where they are"
        )
    return LoopOrigin(pipe)
