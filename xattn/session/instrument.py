"""Base class of what acts inside a block: it observes attention, or changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.session.sampling import Sampling


class Instrument:
    """Something that acts inside a block; every method does nothing unless overridden.

    The session calls them in this order: ``handlers`` once; for each run ``begin``, for each
    denoiser call ``before_call``, ``steer`` and ``after_call``, after each step ``after_step``, at
    its end ``end``. The last ``after_step`` and ``pictures`` come after ``end``. Instruments, and
    their handlers in each layer, run in the order passed to the session: a later one sees the
    effect of the earlier ones.

    Attributes:
        between_steps: whether ``after_step`` must be called; if so, omitting it is an error.
        steers: whether it may change the denoiser's sample.
        films: whether it knows videos, whose maps have several frames.
    """

    between_steps = False
    steers = False
    films = False

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer to wrap."""
        return {}

    def begin(self, sampling: Sampling) -> None:
        """Allocate what the run needs before the first step, and raise if it does not fit."""

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Point the handlers at this call, and set ``live`` on those that should see it."""

    def steer(
        self, sampling: Sampling, call: DenoiserCall, arguments: Mapping[str, Any]
    ) -> Tensor | None:
        """Return another sample for this call to be made with, or None for its own.

        Called between ``before_call`` and the denoiser's own call, for instruments that ``steers``.

        Args:
            sampling: the run.
            call: the call about to be made.
            arguments: the denoiser's arguments, by name.
        """
        return None

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Collect the result of a denoiser call."""

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        """Return the latents the next step starts from."""
        return latents

    def end(self, sampling: Sampling) -> None:
        """Complete a run, whether finished or cut short."""

    def pictures(self, sampling: Sampling, images: list[Any], *, ended: bool) -> None:
        """Receive the pictures the pipeline made of a run."""
