"""Each attention call's probabilities, written out in float64 from its queries and keys.

Queries and keys have gone through the model's own projections, norms and rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ROUNDING = 1e-5 if Version(torch.__version__) >= Version("2.7") else 1.5e-5
"""How far maps of float32 are from these at most; torch 2.6 adds in another order."""


class Dense(TorchFunctionMode):
    """Keep the probabilities of the named layers' calls, (rows, heads, queries, keys) each."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.found: dict[str, list[Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and self.name:
            self.found.setdefault(self.name, []).append(softmax(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def softmax(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **other: Any
) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)  # which heads may share
    scale = other.get("scale") or query.shape[-1] ** -0.5
    logits = query.double() @ key.double().transpose(-1, -2) * scale
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


@contextmanager
def dense(model: nn.Module, names: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Write out the probabilities of some layers of a model, by their names."""
    mode, hooks = Dense(), []
    for name, module in model.named_modules():
        if name in names:
            hooks.append(module.register_forward_pre_hook(lambda *_, n=name: _at(mode, n)))
            hooks.append(module.register_forward_hook(lambda *_: _at(mode, "")))
    try:
        with mode:
            yield mode.found
    finally:
        for each in hooks:
            each.remove()


def _at(mode: Dense, name: str) -> None:
    mode.name = name


@contextmanager
def tokens_read(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the token ids that a text encoder was given, (rows, positions) each."""
    found: list[Tensor] = []

    def hook(_: Any, args: Any, given: dict[str, Any]) -> None:
        ids = args[0] if args else given["input_ids"]
        found.append(ids)

    handle = encoder.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
