"""``editing(...)``: edits in the user's own pipeline calls or sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from xattn.edits.kinds import Edits
from xattn.edits.plan import EditPlan, make_plan
from xattn.instruments.blender import Blender
from xattn.instruments.editor import Editor, check_blends, check_editable, shares_of
from xattn.instruments.keeper import Keeper, KeptSource
from xattn.instruments.planner import Planner
from xattn.instruments.recorder import Recorder
from xattn.instruments.weigher import HeadWeigher
from xattn.models import family_of, family_of_pipeline
from xattn.models.family import Sharing
from xattn.records.options import Options
from xattn.results.trace import Trace
from xattn.session.axis import reader
from xattn.session.instrument import Instrument
from xattn.session.loop import Loop, LoopOrigin
from xattn.session.origin import Origin
from xattn.session.patching import replaced
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import Block, opened
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize_all

TraceOptions = bool | Mapping[str, Any]


class Session:
    """The object yielded by ``editing``: prompts to sample, and LocalBlend between steps.

    Attributes:
        prompts: the source's prompt and each sibling's: the rows of the batch, in this order.
            Without the source's if it was kept from an earlier run.
        trace: the attention of every row in effect; None if it is not recorded.
    """

    def __init__(self, block: Block, editor: Editor, blender: Blender, trace: Trace | None) -> None:
        self._block = block
        self._blender = blender
        self._editor = editor
        self.prompts: list[str] = list(editor.texts)
        self.trace = trace

    @property
    def plan(self) -> EditPlan:
        """The plan of the edits; in joint attention made again as a run's text length is known."""
        return self._editor.plan

    @property
    def must_blend(self) -> bool:
        """Whether ``blend`` has anything to do."""
        return any(instrument.between_steps for instrument in self._block.instruments)

    def blend(self, latents: Tensor) -> Tensor:
        """Return the latents after a scheduler step, with LocalBlends applied.

        Call it after each of the scheduler's steps; without a LocalBlend the latents are returned
        unchanged.

        Args:
            latents: (prompts x images, channels, height, width), prompt-major.
        """
        return self._block.after_step(latents)

    @property
    def masks(self) -> list[Tensor | None]:
        """For each edit, where LocalBlend let it through, (steps, images, height, width).

        All of it in the steps before LocalBlend starts; None for an edit without LocalBlend. On
        the CPU, so reading it waits for the device.
        """
        found: list[Tensor | None] = []
        for sibling, masks in zip(self.plan.siblings, self._blender.masks, strict=True):
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
        """Blend after a step: ``callback_on_step_end`` of a pipeline called in ``editing``."""
        return {**tensors, "latents": self.blend(tensors["latents"])}


@contextmanager
def editing(
    pipe: Any,
    prompt: str,
    *edits: Edits,
    side: int | None = None,
    layers: str | Sequence[str] | None = None,
    scale: int | None = None,
    trace: TraceOptions = True,
) -> Iterator[Session]:
    """Edit the user's own pipeline calls, or sampling loop, inside the block.

    Inside the block a batch of ``session.prompts`` is edited; start all of its rows from the same
    noise. Leaving the block restores the denoiser.

    A ``LocalBlend`` acts between steps: call the pipeline with
    ``callback_on_step_end=session.callback``, or, in a custom loop, ``session.blend`` after each
    step. Omitting a step is an error.

    A ``record`` block around this one sees each row's own attention, as computed by the model
    before the edit; the attention in effect is in ``session.trace``.

    Args:
        pipe: a pipeline; or, for a custom loop, an ``xattn.Loop`` with its scheduler.
        prompt: the source's prompt.
        *edits: one per sibling; a list composes into one.
        side: self-attention follows the source in layers of at most side x side queries; by
            default 16, or a quarter of the latents' height and width if larger; in joint
            attention the image's queries and keys follow in every layer by default.
        layers: names or globs of the layers to edit, such as those of ``vital``; all by default.
        scale: for masks in pixels, pixels per latent; the VAE's, or 8.
        trace: whether to record the attention in effect of each row, or ``record``'s options for
            it: ``keep``, ``words``, ``layers``, ``dtype``, ``to``.

    Yields:
        A ``Session``.

    Raises:
        TypeError: the pipeline has no text cross-attention xattn can edit.
        ValueError: an edit does not fit the prompt, an option is invalid, or (before anything is
            edited) the batch does not match the prompts.
        RuntimeError: a step ended without its LocalBlend.

    Example:
        >>> loop = xattn.Loop(unet, tokenizer=tokenizer, scheduler=scheduler)
        >>> with xattn.editing(loop, "a red car", xattn.Replace("red", "blue")) as session:
        ...     states = encode(session.prompts)
        ...     latents = noise.repeat(len(session.prompts), 1, 1, 1)
        ...     for t in scheduler.timesteps:
        ...         predicted = unet(scheduler.scale_model_input(latents, t), t, states).sample
        ...         latents = session.blend(scheduler.step(predicted, t, latents).prev_sample)
    """
    how: dict[str, Any] = {"side": side, "layers": layers, "scale": scale, "trace": trace}
    with session_of(pipe, prompt, edits, **how) as session:
        yield session


@contextmanager
def session_of(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    *,
    side: int | None = None,
    layers: str | Sequence[str] | None = None,
    scale: int | None = None,
    trace: TraceOptions = True,
    kept: KeptSource | None = None,
    reads: bool = False,
    holding: Callable[[EditPlan], Instrument] | None = None,
) -> Iterator[Session]:
    """Open an editing session that keeps its source, reuses a kept one, or holds it to pivots."""
    side, scale = _whole(side, "side"), _whole(scale, "scale")
    options = Options.of_trace(trace)
    alone = holding is not None or (kept is not None and not reads)
    origin, plan = planned(pipe, prompt, edits, alone=alone)
    scale = scale or int(getattr(pipe, "vae_scale_factor", 8))
    editor = Editor(plan, side=side, kept=kept if reads else None, layers=layers)
    blender = Blender(plan, side=side, scale=scale, kept=kept, reads=reads)
    held = [] if holding is None else [holding(plan)]
    weigher = HeadWeigher(plan, alone=reads)
    weighed = [weigher] if weigher.heads else []
    instruments: list[Instrument] = [*weighed, editor, *held, blender]
    if kept is not None and not reads:
        prompts, tokens = len(plan.prompts), plan.length
        instruments.insert(0, Keeper(kept, prompts=prompts, tokens=tokens, side=side))
    if not origin.loop:
        instruments.insert(0, Planner(edits, (editor, blender, weigher), alone=alone))
    recorded = None if trace is False else Trace(runs=[])
    if recorded is not None:
        instruments.append(Recorder(options, recorded.runs, edited=True))
    with _sharing(pipe, origin), opened(origin, instruments) as block:
        yield Session(block, editor, blender, recorded)
        if block.sampling is None:  # complete, or already released
            block.check_stepped()


def _sharing(pipe: Any, origin: Origin) -> AbstractContextManager[None]:
    """Let the rows of one given picture share it, where it is read anew for each."""
    if origin.loop or not isinstance(origin.family, Sharing):
        return nullcontext()
    return replaced(*origin.family.shared(pipe))


def planned(
    pipe: Any, prompt: str, edits: Sequence[Edits], *, alone: bool
) -> tuple[Origin, EditPlan]:
    """Return the origin of the calls, and the plan of the edits.

    Raises:
        TypeError: the model can't be edited.
        ValueError: an edit does not fit the prompt or the model.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt must be one text with words in it, got {prompt!r}")
    if isinstance(pipe, Loop):
        if pipe.scheduler is None:
            raise ValueError("editing a loop needs its scheduler: xattn.Loop(unet, scheduler=...)")
        _refuse_joint_loop(pipe)
        read = _reader(pipe.tokenizers, None)
        plan = make_plan(read(prompt), edits, read)
        return LoopOrigin(pipe, plan.prompts), plan
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"editing needs a pipeline; for a custom loop pass xattn.Loop({type(pipe).__name__}, "
            "tokenizer=, scheduler=) instead"
        )
    family = family_of_pipeline(pipe)
    check_editable(family)
    read, shares = reader(family.axes(pipe)), shares_of(family)
    plan = make_plan(read(prompt), edits, read, alone=alone, shares=shares)
    check_blends(family, plan)
    return PipelineOrigin(pipe), plan


def _refuse_joint_loop(loop: Loop) -> None:
    family = family_of(loop.unet)
    check_editable(family)
    if shares_of(family).joint:
        raise ValueError(
            f"{type(loop.unet).__name__} attends to text and image in one call, and is edited "
            "through its pipeline only: call the pipeline inside editing(pipe, ...)"
        )


def _reader(tokenizers: Sequence[Any], convert: Any) -> Callable[[str], Prompt]:
    return lambda text: tokenize_all(tokenizers, text, convert=convert)


def _whole(given: Any, name: str) -> int | None:
    """Return a checked count; numpy's integers are accepted like Python's."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 1:
        raise ValueError(f"{name}={given!r} must be a whole number, 1 or more")
    return int(given)
