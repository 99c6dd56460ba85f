"""What a method of attribution has to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from xattn.attribution.targets import Target


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        scores: each word's, (words,).
        maps: where each word's score comes from, (words, height, width); None where a method
            can't say.
        intervals: the 95 % interval of each score, (words, 2), of methods that sample.
        facts: what else is worth knowing, plain values.
    """

    scores: Tensor
    maps: Tensor | None = None
    intervals: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Asked(Protocol):
    """The protocol of what a method asks: clean estimates, or pictures, by what is present.

    Attributes:
        players: how many words, or inputs.
        asked: how many rows of the denoiser, or pictures, were asked.
        full: the estimates with all of them, (states, channels, height, width).
    """

    @property
    def players(self) -> int: ...  # noqa: D102

    @property
    def asked(self) -> int: ...  # noqa: D102

    @property
    def full(self) -> Tensor: ...  # noqa: D102

    def estimates(self, present: Tensor) -> Tensor:
        """Return the estimates of some sets, (rows, states, channels, height, width)."""


class Method(Protocol):
    """The protocol of a method; one frozen object each, which holds its settings.

    Attributes:
        name: as users say it.
        levels: the default levels of the noise schedule.
        along: whether a drawn prompt is asked at the run's own latents.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def levels(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def along(self) -> bool: ...  # noqa: D102

    def rows(self, players: int) -> int:
        """Return the most rows of the denoiser that it needs at each state."""

    def find(self, ask: Any, target: Target) -> Found:
        """Return each word's score."""
