"""Shares of a run: step i of n is inside (a, b) if a·n <= i < b·n."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeAlias, TypeGuard

Share: TypeAlias = float | tuple[float, float]
"""Part of the run: from the start to a share of it, or from one share to another."""


CROSS_STEPS: Share = 0.8
"""Default share of the run in which cross-attention follows the source."""


SELF_STEPS: Share = 0.4
"""Default share of the run in which self-attention follows the source."""


def window(share: Share, name: str) -> tuple[float, float]:
    """Return a share of the run as (from, to).

    Raises:
        ValueError: it is neither a number in [0, 1] nor an ordered pair of them.
    """
    pair = (0.0, share) if is_number(share) else _pair(share)
    if len(pair) == 2 and all(is_number(x) for x in pair):
        start, stop = float(pair[0]), float(pair[1])
        if 0 <= start <= stop <= 1:
            return start, stop
    raise ValueError(
        f"{name}={share!r} is not a share of the run: use a number in [0, 1], or a pair "
        "such as (0.2, 0.8)"
    )


def is_number(given: object) -> TypeGuard[float]:
    """Return whether ``given`` is a number, Python's or numpy's."""
    return isinstance(given, Real)


def _pair(share: Any) -> tuple[Any, ...]:
    """Return ``share`` as a tuple, empty if it is not iterable."""
    return tuple(share) if isinstance(share, Iterable) else ()


def begun(step: int, steps: int, share: float) -> bool:
    """Return whether a step is at or after a share of the run."""
    return step >= (share - 1e-9) * steps  # 0.1 * 30 is slightly more than 3


def inside(step: int, steps: int, span: tuple[float, float]) -> bool:
    """Return whether a step is inside a window of the run."""
    return begun(step, steps, span[0]) and not begun(step, steps, span[1])
