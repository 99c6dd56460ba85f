"""The base of every method: a scheduler's stand-in that steps its own way along the schedule.

A pipeline with a solver in its scheduler's place does all else itself: it encodes the prompt,
guides, and calls its ControlNet, IP-Adapter and denoiser as always, at the timesteps the solver
asks for. So a method is one short file: what to do with each prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xattn.inversion.path import Path
from xattn.models import family_of_pipeline
from xattn.session.patching import around_calls, replaced


class Solver:
    """A scheduler's stand-in: the same levels, other steps.

    A method overrides ``advance``, from a prediction to the next latents, ``begin`` if it makes
    ready for a run, ``calls`` if it asks for other timesteps, ``grouping`` if its steps differ in
    calls, and ``entering`` if the denoiser reads other latents than those the pipeline holds. It
    computes in float32 whatever the pipeline's dtype is.

    Args:
        scheduler: the scheduler whose levels count; it stays as it was.
        up: whether to climb from the clean latents to noise, keeping a pivot at each level.

    Attributes:
        order: denoiser calls per step.
        enters: whether ``entering`` is asked before each call.
        init_noise_sigma: factor that the pipeline applies to its first latents.
        path: the levels, after ``set_timesteps``.
        timesteps: the timestep of each denoiser call, after ``set_timesteps``.
        steps_of_calls: the step of each denoiser call, after ``set_timesteps``.
        pivots: float32 latents by level, while climbing.
    """

    order = 1
    enters = False
    init_noise_sigma = 1.0
    path: Path
    timesteps: Tensor
    steps_of_calls: tuple[int, ...] = ()

    def __init__(self, scheduler: Any, *, up: bool) -> None:
        self.inner = copy.deepcopy(scheduler)
        self.up = up
        self.pivots: dict[int, Tensor] = {}
        self._number = 0
        self._state: Tensor | None = None
        self._from: Tensor | None = None

    @property
    def config(self) -> Any:
        """The scheduler's settings."""
        return self.inner.config

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Lay out the calls along the scheduler's own levels."""
        given = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
        more = {name: each for name, each in given.items() if each is not None}
        if "timesteps" not in more and "sigmas" not in more:
            more["num_inference_steps"] = num_inference_steps
        self.inner.set_timesteps(device=device, **more)
        self.path = Path.of(self.inner)
        dtype = self.inner.timesteps.dtype
        self.timesteps = torch.tensor(self.calls(), device=device, dtype=dtype)
        self.steps_of_calls = tuple(self.grouping())
        self._number, self._state = 0, None
        self.begin()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: steps are counted, not looked up by their timesteps."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the latents unchanged: here they always are the denoiser's input."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        """Return the denoiser's next input, by the method."""
        # on the way down instruments act between steps: what they returned counts
        state = self._state if self.up and self._state is not None else sample.float()
        index = self.steps_of_calls[self._number]
        call = self._number - self.steps_of_calls.index(index)
        if call == 0:
            self._from = state
        assert self._from is not None
        following = self.advance(state, model_output.float(), index, call)
        self._number += 1
        if self.up:
            self._state = following
            if index not in self.steps_of_calls[self._number :]:
                self.pivots[self.leg(index)[1]] = following
        return (following.to(sample.dtype),)

    def leg(self, index: int) -> tuple[int, int]:
        """Return the levels that a step leads from and to."""
        return (self.path.steps - index, self.path.steps - index - 1) if self.up else (
            index, index + 1
        )  # fmt: skip

    @property
    def begun_at(self) -> Tensor:
        """The latents with which the current step began."""
        assert self._from is not None
        return self._from

    # -- the method --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make ready for a run, whose path and calls are known; nothing by default."""

    def calls(self) -> list[float]:
        """Return the timestep of each denoiser call, by default ``order`` times each step's.

        Climbing, a flow is called at the level it leaves; diffusion, whose clean end has no
        timestep, at the one it goes to (Mokady et al. 2023).
        """
        at = [self.path.time(self.seen(index)) for index in range(self.path.steps)]
        return [t for t in at for _ in range(self.order)]

    def grouping(self) -> list[int]:
        """Return the step of each denoiser call."""
        return [number // self.order for number in range(len(self.timesteps))]

    def entering(self, latents: Tensor) -> Tensor:
        """Return what the denoiser reads in the place of its input, (rows, channels, ...)."""
        return latents

    def seen(self, index: int) -> int:
        """Return the level whose timestep the denoiser is called with in a step."""
        start, to = self.leg(index)
        return to if self.up and not self.path.is_flow else start

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the next call's latents.

        Args:
            latents: the input of the call just made, float32.
            output: its prediction, guided, float32.
            index: number of the step, in the order of the walk.
            call: number of the call within the step.
        """
        raise NotImplementedError


class Straight(Solver):
    """DDIM's deterministic step, Euler's for a flow, in either direction."""

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the latents moved along the prediction."""
        start, to = self.leg(index)
        return self.path.moved(latents, output, start, to, self.seen(index))


@contextmanager
def stands_in(pipe: Any, solver: Solver, what: str = "") -> Iterator[None]:
    """Put a solver in the place of a pipeline's scheduler inside the block.

    Args:
        pipe: the pipeline.
        solver: the stand-in.
        what: the progress bar's text.
    """
    bar = {"desc": what, **(getattr(pipe, "_progress_bar_config", None) or {})}
    with (
        replaced(pipe, "scheduler", solver),
        replaced(pipe, "_progress_bar_config", bar),
        _entered(pipe, solver),
    ):
        yield


@contextmanager
def _entered(pipe: Any, solver: Solver) -> Iterator[None]:
    """Let a solver change the denoiser's input inside the block."""
    if not solver.enters:
        yield
        return

    def before(arguments: dict[str, Any]) -> dict[str, Any]:
        name = "sample" if "sample" in arguments else "hidden_states"
        return {**arguments, name: solver.entering(arguments[name])}

    denoiser = family_of_pipeline(pipe).denoisers(pipe)[0]
    with around_calls(denoiser, before, lambda output: None):
        yield


@contextmanager
def watched(denoiser: nn.Module) -> Iterator[dict[str, Any]]:
    """Keep the arguments and the output of the denoiser's latest call inside the block."""
    latest: dict[str, Any] = {}

    def before(arguments: dict[str, Any]) -> None:
        latest["arguments"] = {k: each for k, each in arguments.items() if k != "self"}

    def after(output: Any) -> None:
        latest["output"] = output[0] if isinstance(output, tuple) else output.sample

    with around_calls(denoiser, before, after):
        yield latest
