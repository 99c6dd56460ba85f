"""What acts inside the block: it observes attention, or changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.session.sampling import Sampling


class Instrument:
    """Something that acts inside the block; its moments do nothing until they are overridden.

    The session calls them in this order: ``handlers`` once; for each run ``begin``, for each
    denoiser call ``before_call`` and ``after_call``, after each step ``after_step``, at its end
    ``end``. The last ``after_step`` and ``pictures`` come after ``end``. Instruments take their
    turns in the order in which the session was given them, and so do their handlers in a layer:
    what stands later sees what is in effect.

    Attributes:
        between_steps: whether ``after_step`` must be called, so that leaving it out is an error.
    """

    between_steps = False

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer that is to be wrapped."""
        return {}

    def begin(self, sampling: Sampling) -> None:
        """Lay out axes and bytes before the first step, and refuse what wouldn't fit."""

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the handlers, and set ``live`` where they are to see the call."""

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Take what a call of the denoiser left."""

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        """Return the latents that the next step starts from."""
        return latents

    def end(self, sampling: Sampling) -> None:
        """Complete a run, whole or cut short."""

    def pictures(self, sampling: Sampling, images: list[Any], *, ended: bool) -> None:
        """Take the pictures that the pipeline made of a run."""
