"""Events sent by a pipeline to its session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xattn.session.sampling import Asked


@dataclass(frozen=True)
class Asking:
    """A call of the pipeline is about to encode its prompts."""


@dataclass(frozen=True)
class Encoded:
    """The prompts were encoded: a run with them may begin."""

    asked: Asked


@dataclass(frozen=True)
class Pictures:
    """The pipeline decoded its latents into pictures."""

    images: list[Any]


@dataclass(frozen=True)
class Ended:
    """The pipeline's call ended without an error."""


Event = Asking | Encoded | Pictures | Ended
Receive = Callable[[Event], None]
