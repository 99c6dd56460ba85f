"""A pytest plug-in that puts a recording wrapper around every attention processor.

diffusers' own tests run under it unchanged: ``pytest -p tests.diffusers_plugin``. What passed
without it has to pass with it. ``tests/against_diffusers.py`` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention

from xattn.processors.call import Compute
from xattn.processors.probabilities import kept_probs
from xattn.processors.wrapping import is_wrapped, wrap


class Watching:
    """Computes every probability, sees that rows sum to one, and changes nothing."""

    live = True
    over = False

    def opened(self) -> None:
        """Does nothing."""

    def closed(self) -> None:
        """Does nothing."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        compute: Compute,
    ) -> torch.Tensor:
        """Gives the model's own output."""
        if query.shape[1] == key.shape[1]:  # not where groups of heads share keys
            self.check(kept_probs(query, key, mask, scale, slice(None)))
        return compute(query, key, value, mask)

    def scores(
        self,
        attn: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    ) -> torch.Tensor:
        """Gives the model's own probabilities."""
        self.check(kept_probs(query, key, mask, attn.scale, slice(None)))
        return compute(query, key, mask)

    def check(self, probs: torch.Tensor) -> None:
        """Raises where rows don't sum to one."""
        sums = probs.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0, equal_nan=True)


def pytest_configure(config: pytest.Config) -> None:
    """Wraps what any attention layer is given as its processor."""
    for cls in (Attention, AttentionModuleMixin):
        _wrap_setter(cls)


def _wrap_setter(cls: Any) -> None:
    original = cls.set_processor

    def set_processor(self: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        original(self, processor, *args, **kwargs)
        found = self.processor
        if found is not None and not is_wrapped(found):
            wrapped = wrap(found, Watching())
            if "processor" in self._modules:
                self._modules["processor"] = wrapped
            else:
                self.processor = wrapped

    cls.set_processor = set_processor
