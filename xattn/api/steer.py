"""``steer(pipe, ...)``: a block that moves the latents towards goals for the attention."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from xattn.guidance.goal import Goal
from xattn.guidance.steering import Steering
from xattn.session.loop import Loop, LoopOrigin
from xattn.session.origin import Origin
from xattn.session.patching import StandIn, replaced
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened


@contextmanager
def steer(pipe: Any, *goals: Goal) -> Iterator[Steering]:
    """Steer a pipeline's images towards goals: words that are there, bound, placed, kept apart.

    Before each denoiser call of the run's first part, while a goal isn't met, the latents take
    gradient steps on the goals' losses. A goal that is met at once costs one pass of the prompts'
    rows and changes nothing, bit for bit; so does a weight of 0, at no cost. The pipeline is left
    as it was found.

    Args:
        pipe: a pipeline, or an ``xattn.Loop`` with its scheduler.
        *goals: ``Present``, ``Bind``, ``Place``, ``Apart``; in a batch each goal acts on the
            images whose prompt has its words.

    Yields:
        The ``Steering``: ``losses`` by goal and step, ``gradient_steps``, ``at_most(steps)``,
        ``nbytes`` of a gradient step.

    Raises:
        MemoryError: before the first gradient step, if it would not fit.
        TypeError: something is not a goal, or the pipeline is of no known family.
        ValueError: a word is in none of the prompts (before anything is drawn).

    Example:
        >>> goals = xattn.Present("mug"), xattn.Bind("pink", "fish"), xattn.Place("star", "left")
        >>> with xattn.steer(pipe, *goals) as steering:
        ...     image = pipe("a mug and a pink fish and a star").images[0]
        >>> steering.losses, steering.gradient_steps
    """
    for goal in goals:
        if not isinstance(goal, Goal):
            raise TypeError(f"{goal!r} is not a goal; goals are Present, Bind, Place and Apart")
    origin = _origin(pipe)
    steering = Steering(goals)
    with ExitStack() as stack:
        scheduler = origin.scheduler
        if scheduler is not None and goals:
            step = functools.partial(_step, scheduler.step, steering)
            stand_in = StandIn(scheduler, scheduler.step, step)
            stack.enter_context(replaced(scheduler, "step", stand_in))
        stack.enter_context(opened(origin, [steering] if goals else []))
        yield steering


def _step(step: Any, steering: Steering, *args: Any, **kwargs: Any) -> Any:
    """Step from the latents that the denoiser was given."""
    if steering.shift is None:
        return step(*args, **kwargs)
    given = inspect.signature(step).bind(*args, **kwargs)
    given.arguments["sample"] = steering.moved(given.arguments["sample"])
    return step(*given.args, **given.kwargs)


def _origin(pipe: Any) -> Origin:
    if isinstance(pipe, Loop):
        if pipe.scheduler is None:
            raise ValueError("steering a loop needs its scheduler: xattn.Loop(unet, scheduler=...)")
        if not pipe.texts:
            raise ValueError("a steered loop needs its prompt: xattn.Loop(unet, prompt=...)")
        return LoopOrigin(pipe)
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"steer needs a pipeline; for a custom loop pass xattn.Loop({type(pipe).__name__}, "
            "tokenizer=, prompt=, scheduler=) instead"
        )
    return PipelineOrigin(pipe)
