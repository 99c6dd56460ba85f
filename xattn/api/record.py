"""``record(pipe)``: a block that records a pipeline's attention to words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from xattn.api.concepts import concept_names, encoded_concepts
from xattn.instruments.affinity import AffinityRecorder
from xattn.instruments.concepts import Concept, ConceptRecorder
from xattn.instruments.image_prompt import ImagePromptRecorder
from xattn.instruments.outputs import OutputRecorder
from xattn.instruments.previews import Previews
from xattn.instruments.recorder import Recorder
from xattn.maps.select import IMAGE
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
    also: str | Sequence[str] | None = None,
    outputs: bool = False,
    direction: Literal["image", "text"] = "image",
) -> Iterator[Trace]:
    """Record the attention of every word of a prompt, at every step, inside the block.

    The image stays the pipeline's own, bit for bit, and leaving the block restores the pipeline.
    Each pipeline call inside the block is its own run: the trace's methods use the latest,
    ``trace[i]`` selects another.

    Args:
        pipe: a pipeline of Stable Diffusion 1, 2, XL or 3 (text, img2img, inpaint, ControlNet ...)
            or of FLUX.1, or an ``xattn.Loop`` for a sampling loop of your own.
        keep: which of the axes "step", "layer", "head" stay apart. Those left out are averaged
            while running, in float32, and take no memory.
        words: the words, phrases or token positions to keep; every token of the prompts by
            default. ``range(77)`` includes start, end and padding tokens. With an IP-Adapter
            "image" is its image prompt, for ``trace.image_prompt``: alone beside every word, in a
            list beside those named.
        layers: names or globs of the layers to record, such as "up_blocks.*"; a ControlNet's
            layers are recorded only when named, by "controlnet.*".
        dtype: dtype of the kept maps. Softmax and averages always use float32.
        to: a device, or a folder to stream maps to, one safetensors file per step.
        negative: record the negative prompts too, as further images after the others.
        prompt: the text, if the pipeline receives embeddings instead.
        previews: keep the denoiser's estimate of the image at each step, so that
            ``trace.animate`` can show it forming: per step as many numbers as the latents.
        affinity: keep the attention between the image's cells, averaged over steps and the layers
            of the finest grid up to 32 x 32, for ``heatmap(word, refined=True)``: one number per
            pair of cells, 2 MB per image at 32 x 32. In joint attention, what the image gives to
            itself.
        also: words or phrases that are not prompted, for ``trace.concepts``: two float32 maps of
            each per layer and step. The image and all other maps stay as they are.
        outputs: keep what the text gives to each cell in each cross-attention layer, averaged
            over steps, for ``trace.similarity``: in float16, 40 MB for an image of Stable
            Diffusion 1 at 512 px.
        direction: whose queries the maps are of. "image" is what each place gives to a word;
            "text", in joint attention alone, what a word gives to each place: its probabilities
            over all keys. Then ``trace.at`` has no shares to tell.

    Yields:
        A ``Trace``, filled inside the block.

    Raises:
        MemoryError: before the first step, if the maps would not fit; the error names options
            that would make them fit.
        TypeError: pipe is neither a pipeline of a known family nor a loop.
        ValueError: an option is invalid, or a word is not in the prompt (before any sampling).

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
        outputs=outputs,
        direction=direction,
    )
    trace = Trace(runs=[])
    origin = _origin(pipe, options, prompt)
    names = concept_names(also)
    concepts = encoded_concepts(pipe, names) if names else []
    with opened(origin, instruments_of(options, trace, concepts)):
        yield trace


def instruments_of(
    options: Options, trace: Trace, concepts: Sequence[Concept] = ()
) -> list[Instrument]:
    """Return the instruments of a recording, in the order in which they act."""
    instruments: list[Instrument] = []
    if options.affinity:
        instruments.append(AffinityRecorder())
    if options.previews:
        instruments.append(Previews())
    instruments.append(Recorder(options, trace.runs))
    if options.outputs:
        instruments.append(OutputRecorder())
    if options.words is not None and IMAGE in options.words:
        instruments.append(ImagePromptRecorder(options))
    if concepts:
        instruments.append(ConceptRecorder(concepts, options.keep))
    return instruments


def _origin(pipe: Any, options: Options, prompt: str | Sequence[str] | None) -> Origin:
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"record needs a pipeline; for a custom loop pass xattn.Loop({type(pipe).__name__}, "
            "tokenizer=, prompt=) instead"
        )
    if not isinstance(pipe, Loop):
        texts = None if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)
        return PipelineOrigin(pipe, texts, negative=options.negative)
    if prompt is not None or not pipe.texts:
        raise ValueError("a recorded loop needs its prompt: xattn.Loop(unet, prompt=...)")
    if options.negative:
        raise ValueError(
            "negative=True needs a pipeline; for a loop pass "
            "the negative prompts as prompt=, and rows= for where they are"
        )
    return LoopOrigin(pipe)
