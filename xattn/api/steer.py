"""``steer(pipe, ...)``: a block that moves the latents towards goals for the attention."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from xattn.guidance.goal import Goal
from xattn.guidance.noise import NoiseFound, NoiseSearch
from xattn.guidance.steering import MOVE, ROUNDS, Steering
from xattn.session.loop import Loop, LoopOrigin
from xattn.session.origin import Origin
from xattn.session.patching import StandIn, replaced
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened


@contextmanager
def steer(
    pipe: Any,
    *goals: Goal,
    move: float | None = MOVE,
    rounds: int = ROUNDS,
    layers: str | Sequence[str] | None = None,
) -> Iterator[Steering]:
    """Steer a pipeline's images towards goals: words that are there, bound, placed, kept apart.

    Before each denoiser call of the run's first part, while a goal isn't met, the latents take
    gradient steps on the goals' losses. A goal that is met at once costs one pass of the prompts'
    rows and changes nothing, bit for bit; so does a weight of 0, at no cost. The pipeline is left
    as it was found.

    Args:
        pipe: a pipeline, or an ``xattn.Loop`` with its scheduler.
        *goals: ``Present``, ``Bind``, ``Place``, ``Apart``; in a batch each goal acts on the
            images whose prompt has its words.
        move: how far the latents move in one gradient step: the root mean square, where the
            denoiser's input has about 1; less in later steps. None for the papers' own
            step_size x gradient, whose length depends on the model.
        rounds: gradient steps at most in each step of the schedule; 1 in the papers.
        layers: names or globs of the layers by whose maps goals are judged; by default those
            nearest to a quarter of the latents' height and width.

    Yields:
        The ``Steering``: ``losses`` by goal and step, ``gradient_steps``, ``at_most(steps)``,
        ``nbytes`` of a gradient step.

    Raises:
        MemoryError: before the first gradient step, if it would not fit.
        TypeError: something is not a goal, or the pipeline is of no known family.
        ValueError: an option is out of range, or a word is in none of the prompts (before anything
            is drawn).

    Example:
        >>> goals = xattn.Present("mug"), xattn.Bind("pink", "fish"), xattn.Place("star", "left")
        >>> with xattn.steer(pipe, *goals) as steering:
        ...     image = pipe("a mug and a pink fish and a star").images[0]
        >>> steering.losses, steering.gradient_steps
    """
    _check(goals)
    if (move is not None and not 0 < move <= 10) or rounds < 1:
        raise ValueError(f"move={move} must be in (0, 10], rounds={rounds} at least 1")
    origin = _origin(pipe)
    steering = Steering(goals, move=move, rounds=rounds, layers=layers)
    with ExitStack() as stack:
        scheduler = origin.scheduler
        if scheduler is not None and goals:
            step = functools.partial(_step, scheduler.step, steering)
            stand_in = StandIn(scheduler, scheduler.step, step)
            stack.enter_context(replaced(scheduler, "step", stand_in))
        if goals:
            stack.enter_context(opened(origin, [steering]))
        yield steering


def initial_noise(
    pipe: Any,
    prompt: str | list[str],
    *goals: Goal,
    tries: int = 1,
    seed: int = 0,
    rounds: int = 20,
    rate: float = 0.02,
    kl: float = 1.0,
    **options: Any,
) -> Tensor:
    """Return initial noise from which a pipeline's attention meets goals, as ``latents=``.

    Of ``tries`` noises, that of the pipeline's ``generator=`` or ``latents=`` among them, each
    image takes the one from which the goals' losses are least: one pass each, without a way back.
    That one is searched around by gradient steps at the first timestep, until the goals are met
    (Guo et al. 2024, "InitNO"). Nothing is drawn; drawing then costs what it always does.

    Args:
        pipe: a pipeline.
        prompt: the prompt, or several.
        *goals: ``Present``, ``Bind``, ``Place``, ``Apart``.
        tries: noises to choose from; 1 for the given one alone.
        seed: of the other noises.
        rounds: gradient steps at most, 0 for none; each keeps as much memory as one of ``steer``.
        rate: how fast mean and deviation of the noise change (Adam's learning rate).
        kl: the weight of what keeps it noise, its divergence from a standard normal.
        **options: the pipeline's own options: ``generator=``, ``height=`` ...

    Returns:
        float32 (images, channels, height, width), as the pipeline's ``latents=`` takes it.

    Raises:
        MemoryError: before the first gradient step, if it would not fit.
        TypeError: something is not a goal, or the pipeline is of no known family.
        ValueError: a word is in none of the prompts, or there is no goal.

    Example:
        >>> goal = xattn.Present("cat", "mug")
        >>> noise = xattn.initial_noise(pipe, "a cat and a mug", goal, tries=16, rounds=0)
        >>> image = pipe("a cat and a mug", latents=noise).images[0]
    """
    _check(goals)
    if not goals:
        raise ValueError("initial_noise needs a goal: xattn.Present('mug')")
    if tries < 1 or rounds < 0 or rate <= 0 or kl < 0:
        raise ValueError(f"tries={tries}, rounds={rounds}, rate={rate}, kl={kl} must be positive")
    search = NoiseSearch(goals, tries=tries, seed=seed, rounds=rounds, rate=rate, kl=kl)
    try:
        with opened(PipelineOrigin(pipe), [search]):
            pipe(prompt, **options)
    except NoiseFound:
        pipe.maybe_free_model_hooks()  # what the pipeline does at the end of a call
    if search.noise is None:
        raise RuntimeError("the pipeline did not call its denoiser: there is no noise to search")
    return search.noise


def _check(goals: tuple[Goal, ...]) -> None:
    for goal in goals:
        if not isinstance(goal, Goal):
            raise TypeError(f"{goal!r} is not a goal; goals are Present, Bind, Place and Apart")


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
