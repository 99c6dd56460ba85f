"""Negative-prompt inversion (Miyake et al. 2023): guidance away from the source's own prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xattn.inversion.inversion import Inversion
from xattn.inversion.method import DIFFUSION, Method


class Negative(Method):
    """Invert by DDIM, and put the prompt in the place of the negative one in edits.

    For the source both passes of guidance are then the same, so it is drawn at guidance 1, as it
    was inverted: the optimum of null-text inversion is near the prompt's embedding.
    """

    name = "negative"
    kinds = frozenset((DIFFUSION,))

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Add the source's prompt as the negative one.

        Raises:
            ValueError: there is a negative prompt already.
        """
        if options.get("negative_prompt"):
            raise ValueError(
                "negative_prompt= cannot be had with method='negative', which puts the source's "
                "prompt in its place; leave it out, or use method='direct'"
            )
        options["negative_prompt"] = inversion.prompt
        yield
