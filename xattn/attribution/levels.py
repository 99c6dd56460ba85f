"""Default levels, chosen by `python -m benchmarks.why` on captions that are not reported."""

from __future__ import annotations

DEFAULT = (0.9,)
"""Where one pass ranks words best: the picture is nearly noise, so that words decide most."""

WIDE = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""Where an integral over the noise is taken."""
