"""``record(pipe)``: the block in which a pipeline's attention to words is recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from xattn.instruments.recorder import Recorder
from xattn.records.options import Options, place
from xattn.results.trace import Trace
from xattn.session.loop import LoopSource, refuse_own_loops
from xattn.session.pipeline import PipelineSource, Source

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
    tokenizer: Any = None,
    scheduler: Any = None,
    rows: slice | None = None,
    embeds: torch.Tensor | None = None,
    previews: bool = False,
    affinity: bool = False,
) -> Iterator[Trace]:
    """Records what every word of a prompt attends to, at every step, while the block runs.

    The image stays the pipeline's own, bit for bit, and on leaving the pipeline is as it was
    found. Each call of the pipeline inside the block is a run of its own: the trace answers for
    the latest, ``trace[i]`` for the others.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline (text, img2img, inpaint, ControlNet ...), or,
            for a sampling loop of your own, its UNet.
        keep: which of the axes "step", "layer", "head" stay apart. Those left out are averaged
            while running, in float32, and take no memory.
        words: the words, phrases or token positions to keep; every token of the prompts by
            default. ``range(77)`` keeps the start, end and padding too.
        layers: names or globs of the layers to record, such as "up_blocks.*"; a ControlNet's
            layers are recorded only when named, by "controlnet.*".
        dtype: of the kept maps. Softmax and averages are float32 whatever it is.
        to: a device, or a folder to which maps are streamed, a safetensors file for each step.
        negative: records the negative prompts too, as further images after the others.
        prompt: the text, where it isn't known: prompts passed as embeddings, your own loop.
        tokenizer: for your own loop; a pipeline brings its own.
        scheduler: for your own loop, after ``set_timesteps``: so that the steps, and with them
            the bytes, are known ahead. Without it every new timestep counts as a step.
        rows: for your own loop, which rows of the UNet's batch follow the prompts. By default
            all of them where there are as many as prompts, else the second half, diffusers'
            [negative, positive].
        embeds: for your own loop, the prompts' embeddings, (rows, tokens, channels): the rows
            that follow them are then known by comparing. Guidance in two passes needs it.
        previews: keeps what the denoiser expects the image to be at each step, so that
            ``trace.animate`` shows it as it forms: as many numbers a step as the latents have.
        affinity: keeps what the image's places attend to among themselves, the mean over steps and
            layers of the finest grid of at most 32 x 32, for ``heatmap(word, refined=True)``: as
            many numbers as the grid has pairs of cells, 2 MB for each image at 32 x 32.

    Yields:
        A ``Trace``, filled while the block runs.

    Raises:
        MemoryError: before the first step, when the maps would not fit where they go; the error
            names the options that would make them fit.
        ValueError: an option makes no sense, or a word isn't in the prompt (before any sampling).

    Example:
        >>> pipe = xattn.demo()
        >>> with xattn.record(pipe) as trace:
        ...     image = pipe("a red car on a green lawn").images[0]
        >>> trace.heatmap("red").overlay(image).save("red.png")
    """
    options = Options(
        keep=frozenset((keep,) if isinstance(keep, str) else keep),
        words=None if words is None else tuple([words] if isinstance(words, str | int) else words),
        layers=layers if layers is None or isinstance(layers, str) else tuple(layers),
        dtype=dtype,
        to=place(to),
        negative=negative,
        prompt=None if prompt is None else tuple([prompt] if isinstance(prompt, str) else prompt),
        rows=rows,
        embeds=embeds,
        previews=previews,
        affinity=affinity,
    )
    if isinstance(pipe, nn.Module):
        if tokenizer is None or prompt is None:
            raise ValueError("recording a UNet needs tokenizer= and prompt=, to know its words")
        if negative:
            raise ValueError(
                "negative=True needs a pipeline, which knows its negative prompt; for a UNet pass "
                "the negative prompts as prompt=, and rows= for where they are"
            )
        source: Source = LoopSource(pipe, options, tokenizer, scheduler)
    else:
        refuse_own_loops({
            "tokenizer": tokenizer, "scheduler": scheduler, "rows": rows, "embeds": embeds,
        })  # fmt: skip
        source = PipelineSource(pipe, options)
    recorder = Recorder(source, options)
    with recorder.installed():
        yield recorder.trace
