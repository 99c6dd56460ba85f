"""Shares of a run: step i of n is inside (a, b) if a·n <= i < b·n."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias, TypeGuard

Share: TypeAlias = float | tuple[float, float]
"""Part of the run: from the start to a share of it, or from one share to another."""


CROSS_STEPS: Share = 0.8
"""Default share of the run in which cross-attention follows the source."""


SELF_STEPS: Share = 0.4
"""Default share of the run in which self-attention follows the source."""


@dataclass(frozen=True)
class Shares:
    """The shares of the run in which attention follows the source, where an edit sets none.

    Attributes:
        cross: of cross-attention, or the text's columns of joint attention.
        self_: of self-attention, or the image's queries and keys of joint attention.
        joint: whether text and image are in one attention.
    """

    cross: Share
    self_: Share
    joint: bool = False


SEPARATE = Shares(CROSS_STEPS, SELF_STEPS)
"""The defaults where text has cross-attention of its own (Hertz et al. 2022)."""


JOINT = Shares(0.2, 0.2, joint=True)
"""The defaults of joint attention."""


def window(share: Share, name: str) -> tuple[float, float]:
    """Return a share of the run as (from, to).

    Raises:
        ValueError: it is neither a number in [0, 1] nor an ordered pair of them.
    """
    pair = (0.0, share) if is_number(share) else _pair(share)
    if len(pair) == 2 and all(is_number(x) for x in pair):
        start, stop = pair  # as they came: an integer of hundreds of digits is not a float
        if 0 <= start <= stop <= 1:
            return float(start), float(stop)
    raise ValueError(
        f"{name}={share!r} is not a share of the run: give a number in [0, 1], or a pair of them "
        "such as (0.2, 0.8)"
    )


def is_number(given: object) -> TypeGuard[float]:
    """Return whether something is a number; numpy's are as good as Python's."""
    return isinstance(given, Real)


def _pair(share: Any) -> tuple[Any, ...]:
    """Return what should be a pair; nothing where it has no parts."""
    return tuple(share) if isinstance(share, Iterable) else ()


def begun(step: int, steps: int, share: float) -> bool:
    """Return whether a step of a run of so many steps is at or behind a share of it."""
    return step >= (share - 1e-9) * steps  # 0.1 * 30 is a little more than 3


def inside(step: int, steps: int, span: tuple[float, float]) -> bool:
    """Return whether a step of a run of so many steps is inside a window of it."""
    return begun(step, steps, span[0]) and not begun(step, steps, span[1])


FLOAT32_MAX = (2 - 2**-23) * 2.0**127


def fits_float32(given: object) -> TypeGuard[float]:
    """Return whether ``given`` is a finite number within the range of float32."""
    if not is_number(given):
        return False
    try:
        return abs(float(given)) <= FLOAT32_MAX  # NaN is not
    except OverflowError:  # an integer of hundreds of digits
        return False
