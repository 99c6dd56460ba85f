"""A pytest plug-in that puts a recording wrapper around every attention processor.

diffusers' own tests run under it unchanged: ``pytest -p tests.diffusers_plugin``. What passed
without it has to pass with it. ``tests/against_diffusers.py`` compares the two.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.chain import Chain
from xattn.processors.wrapping import is_wrapped, wrap


class Watching(Handler):
    """Compute every probability, see that rows sum to one, and change nothing."""

    def observe(self, call: AttentionCall) -> None:
        """Raise where rows don't sum to one."""
        if call.query.shape[1] != call.key.shape[1]:
            return  # groups of heads share keys
        sums = call.probabilities(slice(0, len(call.query))).sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-4, rtol=0, equal_nan=True)


def watched(heads: int) -> Chain:
    """Return a chain that watches every call of a layer."""
    watching = Watching()
    watching.live = True
    chain = Chain("watched", heads, [watching])
    chain.wake()
    return chain


def pytest_configure(config: pytest.Config) -> None:
    """Wrap what any attention layer is given as its processor."""
    for cls in (Attention, AttentionModuleMixin):
        _wrap_setter(cls)


def _wrap_setter(cls: Any) -> None:
    original = cls.set_processor

    def set_processor(self: Any, processor: Any, *args: Any, **kwargs: Any) -> None:
        original(self, processor, *args, **kwargs)
        found = self.processor
        if found is not None and not is_wrapped(found):
            wrapped = wrap(found, watched(int(getattr(self, "heads", 1))))
            if "processor" in self._modules:
                self._modules["processor"] = wrapped
            else:
                self.processor = wrapped

    cls.set_processor = set_processor
