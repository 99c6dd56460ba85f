"""What a pipeline lets its session know."""

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
    """The prompts were encoded: a run of them may begin."""

    asked: Asked


@dataclass(frozen=True)
class Pictures:
    """The pipeline made pictures of its latents."""

    images: list[Any]


@dataclass(frozen=True)
class Ended:
    """The pipeline's call came to its end, without a fault."""


Event = Asking | Encoded | Pictures | Ended
Receive = Callable[[Event], None]
