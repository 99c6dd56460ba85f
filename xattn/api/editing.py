"""``editing(...)``: edits for pipeline calls, or a sampling loop, of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from xattn.edits.kinds import Edits
from xattn.edits.plan import EditPlan, make_plan
from xattn.instruments.editor import Editor
from xattn.instruments.keeper import KeptSource
from xattn.records.options import Options, place
from xattn.results.trace import Trace
from xattn.session.loop import LoopSource, refuse_own_loops
from xattn.session.pipeline import PipelineSource
from xattn.session.source import Asked
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize_all

TraceOptions = bool | Mapping[str, Any]


class Session:
    """What ``editing`` gives: the prompts to sample, and LocalBlend's step between steps.

    Attributes:
        plan: which token takes from which.
        prompts: the source's prompt and each sibling's: the rows of the batch, in this order.
            Without the source's where it was kept of an earlier run.
        trace: what every row attends to in effect; None where it isn't recorded.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.plan: EditPlan = editor.edits
        self.prompts: list[str] = list(editor.texts)
        self.trace: Trace | None = editor.trace if editor.records else None

    @property
    def must_blend(self) -> bool:
        """Whether ``blend`` has anything to do."""
        return self._editor.must_blend

    def blend(self, latents: Tensor) -> Tensor:
        """Gives the latents after a step of the scheduler, LocalBlends applied.

        To be called after each of the scheduler's steps; without a LocalBlend it gives back what
        it was given.

        Args:
            latents: (prompts x images, channels, height, width), prompt-major.
        """
        return self._editor.blend(latents)

    @property
    def masks(self) -> list[Tensor | None]:
        """For each edit where LocalBlend let it through, (steps, images, height, width).

        All of it in the steps before LocalBlend starts; None for an edit without LocalBlend. On
        the CPU, so that asking for it waits for the device.
        """
        found: list[Tensor | None] = []
        for sibling, masks in zip(self.plan.siblings, self._editor.masks, strict=True):
            some = next((m for m in masks if m is not None), None)
            if sibling.blend is None or some is None:
                found.append(None)
            else:
                whole = [torch.ones_like(some) if m is None else m for m in masks]
                found.append(torch.stack(whole).cpu())
        return found

    def callback(
        self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Is ``callback_on_step_end`` for a pipeline that is called inside ``editing``."""
        return {**tensors, "latents": self.blend(tensors["latents"])}


@contextmanager
def editing(
    pipe: Any,
    prompt: str,
    *edits: Edits,
    tokenizer: Any = None,
    scheduler: Any = None,
    images: int | None = None,
    rows: slice | None = None,
    embeds: Tensor | None = None,
    side: int | None = None,
    scale: int | None = None,
    trace: TraceOptions = True,
) -> Iterator[Session]:
    """Edits while the block runs: for pipeline calls, or a sampling loop, of your own.

    Inside the block a batch of ``session.prompts`` is edited; start all of its rows from the same
    noise. On leaving the denoiser is as it was found.

    A ``LocalBlend`` acts between steps: call the pipeline with
    ``callback_on_step_end=session.callback``, or, in your own loop, ``session.blend`` after each
    step. A step that is left out is an error.

    A ``record`` block around this one sees each row's own attention, as the model computed it
    before the edit; what a row attends to in effect is in ``session.trace``.

    Args:
        pipe: a pipeline; or, for your own loop, its UNet.
        prompt: the source's prompt.
        *edits: one for each sibling; a list composes into one.
        tokenizer: for your own loop: the tokenizer, or both of SDXL's.
        scheduler: for your own loop, after ``set_timesteps``: edits are timed by its steps.
        images: for your own loop, images of each prompt, 1 by default; the batch is prompt-major.
        rows: for your own loop, which rows of the UNet's batch follow the prompts. By default
            all of them where there are as many as prompts x images, else the second half.
        embeds: for your own loop, the prompts' embeddings, (rows, tokens, channels), in the
            batch's order: the rows that follow them are then known by comparing. Guidance in two
            passes needs it.
        side: self-attention follows the source in layers of at most side x side queries; by
            default 16, or a quarter of the latents' height and width where that is more.
        scale: for masks in pixels, pixels for each latent; the VAE's, or 8.
        trace: whether to record what each row attends to in effect, or ``record``'s options for
            it: ``keep``, ``words``, ``layers``, ``dtype``, ``to``.

    Yields:
        A ``Session``.

    Raises:
        TypeError: the pipeline has no text cross-attention that can be seen.
        ValueError: an edit doesn't fit the prompt, an option makes no sense, or, before anything
            is edited, the batch isn't that of the prompts.
        RuntimeError: a LocalBlend was left out after a step.

    Example:
        >>> with xattn.editing(
        ...     unet, "a red car", xattn.Replace("red", "blue"),
        ...     tokenizer=tokenizer, scheduler=scheduler,
        ... ) as session:
        ...     states = encode(session.prompts)
        ...     latents = noise.repeat(len(session.prompts), 1, 1, 1)
        ...     for t in scheduler.timesteps:
        ...         predicted = unet(scheduler.scale_model_input(latents, t), t, states).sample
        ...         latents = session.blend(scheduler.step(predicted, t, latents).prev_sample)
    """
    with session_of(
        pipe, prompt, edits, tokenizer=tokenizer, scheduler=scheduler, images=images, rows=rows,
        embeds=embeds, side=side, scale=scale, trace=trace,
    ) as session:  # fmt: skip
        yield session


@contextmanager
def session_of(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    *,
    tokenizer: Any = None,
    scheduler: Any = None,
    images: int | None = None,
    rows: slice | None = None,
    embeds: Tensor | None = None,
    side: int | None = None,
    scale: int | None = None,
    trace: TraceOptions = True,
    kept: KeptSource | None = None,
    reads: bool = False,
) -> Iterator[Session]:
    """Is ``editing``, with a source that is kept, or was."""
    side, scale = _whole(side, "side"), _whole(scale, "scale")
    each = _whole(images, "images") or 1
    options = _options(trace, rows, embeds)
    alone = kept is not None and not reads
    if isinstance(pipe, nn.Module):
        if tokenizer is None or scheduler is None:
            raise ValueError("editing a UNet needs tokenizer= and scheduler=")
        tokenizers = list(tokenizer) if isinstance(tokenizer, list | tuple) else [tokenizer]
        plan = make_plan(*_tokenized(prompt, edits, tokenizers, None))
        source: PipelineSource | LoopSource = LoopSource(pipe, options, tokenizers, scheduler)
        owners = tuple(j for j in range(len(plan.prompts)) for _ in range(each))
        if embeds is not None and len(embeds) != len(owners):
            raise ValueError(
                f"embeds has {len(embeds)} rows; {len(plan.prompts)} prompts x images={each} are "
                f"{len(owners)}"
            )
        source.asked = Asked(plan.prompts, owners, embeds)
    else:
        refuse_own_loops({
            "tokenizer": tokenizer, "scheduler": scheduler, "images": images, "rows": rows,
            "embeds": embeds,
        })  # fmt: skip
        source = PipelineSource(pipe, options)
        named = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
        tokenizers = [t for t in named if t is not None]
        convert = getattr(pipe, "maybe_convert_prompt", None)
        plan = make_plan(*_tokenized(prompt, edits, tokenizers, convert), alone=alone)
    editor = Editor(
        source,
        options,
        plan,
        records=trace is not False,
        images=each,
        side=side,
        scale=scale or int(getattr(pipe, "vae_scale_factor", 8)),
        kept=kept,
        reads=reads,
    )
    with editor.installed():
        yield Session(editor)
        editor.check_left()


def _whole(given: Any, name: str) -> int | None:
    """Gives a number of things, checked; numpy's integers are as good as Python's."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise ValueError(f"{name}={given!r} must be a whole number, 1 or more")
    return int(given)


def _options(trace: TraceOptions, rows: slice | None, embeds: Tensor | None) -> Options:
    given = dict(trace) if isinstance(trace, Mapping) else {}
    unknown = set(given) - {"keep", "words", "layers", "dtype", "to"}
    if unknown:
        raise ValueError(
            f"trace={trace!r}: {sorted(unknown)[0]!r} is none of keep, words, layers, dtype, to"
        )
    for name in ("keep", "words", "layers"):
        value = given.get(name)
        if value is not None:
            given[name] = (value,) if isinstance(value, str | int) else tuple(value)
    if "keep" in given:
        given["keep"] = frozenset(given["keep"])
    if "to" in given:
        given["to"] = place(given["to"])
    return Options(rows=rows, embeds=embeds, **given)


def _tokenized(
    prompt: str, edits: Sequence[Edits], tokenizers: Sequence[Any], convert: Any
) -> tuple[Prompt, Sequence[Edits], Callable[[str], Prompt]]:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt must be one text with words in it, got {prompt!r}")

    def tokenize(text: str) -> Prompt:
        return tokenize_all(tokenizers, text, convert=convert)

    return tokenize(prompt), edits, tokenize
