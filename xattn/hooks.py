"""Installing and restoring, and the clock: which denoiser call, which step, which rows."""

from __future__ import annotations

import functools
import inspect
import math
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
    with _lock:  # torch gives two threads that register at once the same number
        # a call in another thread can come between torch's two steps of registering with_kwargs
        begins = _Hook(lambda args, kwargs=None: before(named(args, kwargs or {})))
        first = denoiser.register_forward_pre_hook(begins, with_kwargs=True)
        last = denoiser.register_forward_hook(_Hook(lambda args, output: after(output)))
    try:
        yield
    finally:
        with _lock:
            first.remove()
            last.remove()


class _Hook:
    """A module's hook that a copied or pickled module leaves behind."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, module: nn.Module, *args: Any) -> None:
        self.call(*args)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> Any:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _nothing


def _nothing(*args: Any) -> None:
    """Is what a copied module has in the place of our hook."""


class StandIn:
    """A function in the place of a method; a copy of its owner has the method again."""

    def __init__(self, owner: Any, method: Any, call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method)  # whoever wraps us still sees the parameters
        self.owner = owner
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo.get(id(self.owner), self.owner)
        return getattr(type(owner), self.__name__).__get__(owner)  # type: ignore[attr-defined]

    def __reduce__(self) -> Any:
        return getattr, (self.owner.__class__, self.__name__)  # type: ignore[attr-defined]


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
        at: the timestep of each call.
    """

    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    at: tuple[float, ...]

    @property
    def calls(self) -> int:
        """How often the denoiser is called."""
        return len(self.steps)

    def ends_step(self, call: int) -> bool:
        """Tells whether a call is the last one of its step."""
        return call + 1 >= len(self.steps) or self.steps[call + 1] != self.steps[call]

    @classmethod
    def of(
        cls, timesteps: Sequence[float], order: int = 1, *, repeats: bool = False, lead: int = 0
    ) -> Schedule:
        """Groups a scheduler's timesteps into steps.

        Args:
            timesteps: one for each denoiser call.
            order: calls a step: 2 for Heun and DPM2, one time less in the last step.
            repeats: whether equal timesteps that follow one another are one step, as in PNDM's
                warm-up. Elsewhere they are steps apart, which a coarse schedule rounded alike.
            lead: how many calls at the beginning go four to a step, Runge and Kutta's.
        """
        steps: list[int] = []
        starts: list[float] = []
        for call, t in enumerate(timesteps):
            if call < lead:
                new = call % 4 == 0
            elif order > 1:
                new = call % order == 0
            else:
                new = not (repeats and call > lead and t == timesteps[call - 1])
            if new:
                starts.append(float(t))
            steps.append(len(starts) - 1)
        return cls(tuple(steps), tuple(starts), tuple(map(float, timesteps)))


@dataclass(frozen=True)
class Clock:
    """A run's schedule, and how a denoiser call is known to be the one that it says.

    Attributes:
        plan: the schedule.
        timesteps: the scheduler's own tensor, of which pipelines pass one element after another.
        begin: which of them is the first call's.
    """

    plan: Schedule
    timesteps: Tensor
    begin: int

    def is_at(self, call: int, given: Any) -> bool:
        """Tells whether a timestep is that of a call.

        An element of the scheduler's tensor is known by its place, so that nothing waits for the
        device; any other number by its value.
        """
        if call >= self.plan.calls:
            return False
        if _place_in(self.timesteps, given) == self.begin + call:
            return True
        value, expected = timestep_of(given), self.plan.at[call]
        narrow = isinstance(given, Tensor) and given.dtype in (torch.float16, torch.bfloat16)
        return math.isclose(value, expected, rel_tol=4e-3 if narrow else 1e-6)


def clock_of(scheduler: Any, calls: int | None, given: Any) -> Clock:
    """Derives a run's clock from its scheduler, just before the first denoiser call.

    Args:
        scheduler: after ``set_timesteps``.
        calls: how many denoiser calls the pipeline will make, where it says so.
        given: the timestep of the first call: img2img and ``denoising_end`` shorten the schedule.

    Raises:
        RuntimeError: the timestep isn't one of the scheduler's.
    """
    base: Tensor = scheduler.timesteps
    timesteps = [float(t) for t in base.tolist()]
    begin = _place_in(base, given)
    if begin is None:
        begin = _first_call(timesteps, timestep_of(given), calls, scheduler)
    stop = len(timesteps) if calls is None else begin + calls
    prk = getattr(scheduler, "prk_timesteps", None)
    plan = Schedule.of(
        timesteps[begin:stop],
        int(getattr(scheduler, "order", 1)),
        repeats="skip_prk_steps" in scheduler.config,
        lead=0 if prk is None else max(0, len(prk) - begin),
    )
    return Clock(plan, base, begin)


def _first_call(timesteps: list[float], first: float, calls: int | None, scheduler: Any) -> int:
    places = [i for i, t in enumerate(timesteps) if math.isclose(t, first, rel_tol=1e-6)]
    if not places:
        shown = ", ".join(f"{t:g}" for t in timesteps[:6])
        raise RuntimeError(
            f"the denoiser was called at timestep {first:g}, which is none of the scheduler's "
            f"({shown} ...): pass it as the scheduler gives it"
        )
    begin = getattr(scheduler, "begin_index", None)
    if begin in places:
        return int(begin)
    fitting = [i for i in places if calls is not None and i + calls == len(timesteps)]
    return (fitting or places)[0]


def timestep_of(given: Any) -> float:
    """Gives a timestep's value, of a number, a tensor, or a tensor with one for each row."""
    return float(torch.as_tensor(given).flatten()[0])


def _place_in(base: Tensor, given: Any) -> int | None:
    """Tells which element of a tensor another tensor is, without reading either."""
    if not isinstance(given, Tensor) or given.numel() != 1 or given.dtype != base.dtype:
        return None
    if given.device != base.device or not given.untyped_storage().data_ptr():
        return None
    offset = given.data_ptr() - base.data_ptr()
    place, rest = divmod(offset, base.element_size())
    return place if rest == 0 and 0 <= place < len(base) else None


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
    """Gives the rows that follow the prompts in a loop of one's own: all, or the second half.

    Raises:
        RuntimeError: the batch is neither as large as the rows asked for nor twice as large.
    """
    if batch not in (rows, 2 * rows):
        raise RuntimeError(
            f"the denoiser was called with {batch} rows for {rows} images: which of them follow "
            "the prompts can't be known; pass rows= or embeds="
        )
    return slice(batch - rows, batch)


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

    @property
    def is_here(self) -> bool:
        """Whether the recording is this thread's."""
        return self.thread == threading.get_ident()

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
