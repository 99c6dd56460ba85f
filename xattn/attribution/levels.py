"""Default levels, chosen on 28 captions of the UNets that are not reported.

`python -m benchmarks.why --tune` compares such levels; none were chosen for joint attention.
"""

from __future__ import annotations

DEFAULT = (0.9, 0.8, 0.7, 0.6)
"""Where a run decides what is drawn: together they rank words better than any one of them."""

FEW = (0.9, 0.7)
"""The two of them for methods that ask about many sets of words."""

WIDE = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""Where an integral over the noise is taken."""
