"""Installing and restoring, and the clock: which denoiser call, which step, which rows."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MISSING = object()


@dataclass(eq=False)
class _Replacement:
    owner: Any
    name: str
    value: Any
    before: Any
    over: bool = False


_replacements: list[_Replacement] = []
_lock = threading.Lock()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute on an instance for a while, then puts back exactly what was there.

    Replacements of one attribute may end in any order: the last to end finds the original.
    Whoever else set the attribute in between keeps it.
    """
    with _lock:
        mine = _Replacement(owner, name, value, owner.__dict__.get(name, _MISSING))
        _replacements.append(mine)
        object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        with _lock:
            mine.over = True
            _restore(owner, name)


def _restore(owner: Any, name: str) -> None:
    while True:
        here = [r for r in _replacements if r.owner is owner and r.name == name]
        top = [r for r in here if r.value is owner.__dict__.get(name, _MISSING)]
        if not top or not top[0].over:
            break
        if top[0].before is _MISSING:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, top[0].before)
        _replacements.remove(top[0])
    if all(r.over for r in here):
        for r in here:
            _replacements.remove(r)


Before = Callable[[dict[str, Any]], None]
After = Callable[[Any], None]


@contextmanager
def around_calls(denoiser: nn.Module, before: Before, after: After) -> Iterator[None]:
    """Calls ``before(arguments)`` and ``after(output)`` around every call of a denoiser.

    ``arguments`` are the call's by name. Outside of torch.compile's graph, whether the module was
    compiled as ``torch.compile(unet)`` or in place by ``unet.compile()``.
    """
    names = list(inspect.signature(_original(denoiser).__class__.forward).parameters)[1:]

    def named(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(names, args, strict=False)), **kwargs}

    compiled = denoiser.__dict__.get("_compiled_call_impl")
    if compiled is not None and denoiser is _original(denoiser):

        def call(*args: Any, **kwargs: Any) -> Any:
            before(named(args, kwargs))
            result = compiled(*args, **kwargs)
            after(result)
            return result

        with replaced(denoiser, "_compiled_call_impl", call):
            yield
        return
    first = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: before(named(args, kwargs)), with_kwargs=True
    )
    last = denoiser.register_forward_hook(lambda _, args, output: after(output))
    try:
        yield
    finally:
        first.remove()
        last.remove()


def _original(denoiser: Any) -> Any:
    return getattr(denoiser, "_orig_mod", denoiser)


def is_compiled(denoiser: nn.Module) -> bool:
    """Tells whether calls go through torch.compile."""
    in_place = denoiser.__dict__.get("_compiled_call_impl") is not None
    return in_place or denoiser is not _original(denoiser)


def mark_dynamic(tensor: Tensor, axis: int) -> None:
    """Tells torch.compile that an axis may have another length the next time."""
    from torch import _dynamo

    _dynamo.maybe_mark_dynamic(tensor, axis)


@dataclass(frozen=True)
class Schedule:
    """The denoiser calls of a run, grouped into the steps of its schedule.

    Attributes:
        steps: for each denoiser call, the step it belongs to.
        timesteps: the timestep of each step.
    """

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]

    @property
    def calls(self) -> int:
        """How often the denoiser is called."""
        return len(self.steps)

    def ends_step(self, call: int) -> bool:
        """Tells whether a call is the last one of its step."""
        return call + 1 >= len(self.steps) or self.steps[call + 1] != self.steps[call]

    @classmethod
    def of(cls, timesteps: Sequence[float], order: int = 1) -> Schedule:
        """Groups a scheduler's timesteps: ``order`` calls a step, or equal ones that follow.

        Heun and DPM2 call the denoiser ``order`` times in a step (one time less in the last),
        PNDM's warm-up repeats a timestep.
        """
        steps: list[int] = []
        starts: list[float] = []
        for call, t in enumerate(timesteps):
            new = call % order == 0 if order > 1 else not steps or t != starts[-1]
            if new:
                starts.append(float(t))
            steps.append(len(starts) - 1)
        return cls(tuple(steps), tuple(starts))


def schedule_of(scheduler: Any, calls: int | None, first: float) -> Schedule:
    """Derives a run's schedule from its scheduler, just before the first denoiser call.

    Args:
        scheduler: after ``set_timesteps``.
        calls: how many denoiser calls the pipeline will make, where it says so.
        first: the timestep of the first call: img2img and ``denoising_end`` shorten the schedule.
    """
    timesteps = [float(t) for t in scheduler.timesteps.tolist()]
    begin = getattr(scheduler, "begin_index", None)
    if begin is None or begin >= len(timesteps) or timesteps[begin] != first:
        begin = timesteps.index(first) if first in timesteps else 0
    stop = len(timesteps) if calls is None else begin + calls
    return Schedule.of(timesteps[begin:stop], int(getattr(scheduler, "order", 1)))


@dataclass
class Encoded:
    """What a pipeline's ``encode_prompt`` was asked for, and what it gave."""

    arguments: dict[str, Any]
    prompt_embeds: Tensor
    negative_embeds: Tensor | None

    @property
    def rows(self) -> int:
        """How many images will be drawn: prompts x images per prompt."""
        return len(self.prompt_embeds)


def encoded(method: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Encoded:
    """Reads one call of ``encode_prompt``."""
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    positive, negative = result[0], result[1] if len(result) > 1 else None
    return Encoded(dict(bound.arguments), positive, negative)


# The blocks of a guided batch in which the conditional rows are looked for, in this order: most
# pipelines have [negative, positive] and PAG [negative, positive, positive]; Lumina and
# InstructPix2Pix have the positive first.
_BLOCKS = (1, 0, 2)


def conditional_block(states: Tensor, embeds: Tensor) -> slice | None:
    """Finds the rows of a denoiser call that follow the prompts, by comparing embeddings.

    Where the prompt and the negative prompt are the same, the usual layout decides.

    Returns:
        Rows of the batch, or None where no block of them equals the embeddings.
    """
    rows = len(embeds)
    if len(states) % rows or states.shape[1:] != embeds.shape[1:]:
        return None
    embeds = embeds.to(states)
    for block in _BLOCKS:
        span = slice(block * rows, (block + 1) * rows)
        if span.stop <= len(states) and torch.equal(states[span], embeds):
            return span
    return None


def usual_block(batch: int, rows: int) -> slice:
    """Gives the conditional rows by the usual layout, [negative, positive, ...].

    Raises:
        RuntimeError: the batch isn't a multiple of the images asked for.
    """
    if batch % rows:
        raise RuntimeError(
            f"the denoiser was called with {batch} rows for {rows} images: which of them follow "
            "the prompt can't be known; pass rows= to record your own sampling loop"
        )
    block = min(1, batch // rows - 1)
    return slice(block * rows, (block + 1) * rows)


def text_states(states: Any) -> Tensor | None:
    """Gives the text's part of ``encoder_hidden_states`` (IP-Adapter makes it a tuple)."""
    if isinstance(states, tuple | list):
        states = states[0]
    return states if isinstance(states, Tensor) else None


@dataclass
class Owner:
    """Refuses a second thread while a run of the first is under way."""

    thread: int | None = None

    def claim(self) -> None:
        """Takes the recording for this thread."""
        self.thread = threading.get_ident()

    def release(self) -> None:
        """Lets any thread begin the next run."""
        self.thread = None

    def check(self) -> None:
        """Raises RuntimeError when another thread's run is under way."""
        if self.thread is not None and self.thread != threading.get_ident():
            raise RuntimeError(
                "another thread is using this pipeline, or one with the same UNet, inside a "
                "recording; give each thread a pipeline with a UNet of its own, or its own turn"
            )
