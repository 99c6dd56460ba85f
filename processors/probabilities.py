"""Attention probabilities in float32, only for kept tokens.

PyTorch's fused attention computes the logarithms of the softmax's sums and discards them. Called
by its own name, the operator returns them beside the very same output. A kept token's
probabilities are then exp(query keyᵀ scale - sums): work for one token, and no matrix of
queries x keys.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Tokens = slice | Tensor
"""Positions along an axis: a slice if they are consecutive."""

_FLASH = 1  # SDPBackend.FLASH_ATTENTION
_CHUNK = 2**24  # logits at a time if only their sums are needed: 64 MB
# one overload: resolving it at each call would take as long as a small layer's softmax
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, own: Any
) -> tuple[Tensor, Tensor] | None:
    """Return the model's own output, and the logarithms of its softmax's sums.

    The operator is the one ``scaled_dot_product_attention`` would choose on the CPU.

    Args:
        query: (batch, heads, queries, channels).
        key: (batch, heads, keys, channels).
        value: (batch, heads, keys, channels).
        mask: the call's boolean or additive mask.
        own: the model's own call, an ``OwnCall``.

    Returns:
        (batch, heads, queries, channels) and float32 (batch, heads, queries), or None if PyTorch
        would use another operator, or a torch function mode watches its calls.
    """
    if (
        query.device.type != "cpu"
        or not getattr(own, "usual", False)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_function_stack()
        or type(query) is not Tensor
        or (mask is not None and mask.requires_grad)
    ):
        return None
    keys, values, shared = own.asked(key, value)
    choice = torch._fused_sdp_choice(query, keys, values, mask, scale=own.scale, enable_gqa=shared)
    if choice != _FLASH:
        return None
    extra = {} if mask is None else {"attn_mask": _additive(mask, query.dtype)}
    output, sums = _flash(query, key, value, scale=own.scale, **extra)
    return output, sums.detach().float()  # double if the queries are


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as numbers to add to the logits."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def kept_maps(
    query: Tensor,
    key: Tensor,
    scale: float,
    sums: Tensor,
    tokens: Tokens,
    mask: Tensor | None = None,
) -> Tensor:
    """Return exp(query keyᵀ scale + mask - sums) in float32, for kept tokens only.

    Args:
        query: (rows, heads, queries, channels).
        key: (rows, heads, keys, channels).
        scale: the attention scale.
        sums: logarithms of the softmax's sums, (rows, heads, queries).
        tokens: the keys to keep.
        mask: boolean or additive, broadcastable to (rows, heads, queries, keys).

    Returns:
        (rows, heads, kept tokens, queries)
    """
    key = picked(key, tokens, 2)
    rows = len(key)
    with _exact(query.device.type):
        query, key = query.float().flatten(0, 1), key.float().flatten(0, 1)
        sums = sums.float().flatten(0, 1)[:, None]  # (rows x heads, 1, queries)
        logits = torch.baddbmm(sums, key, query.transpose(1, 2), beta=-1, alpha=scale)
        logits = logits.unflatten(0, (rows, -1))
        if mask is not None:
            mask = mask if mask.shape[-1] == 1 else picked(mask, tokens, -1)
            logits = masked(logits, mask.transpose(-1, -2))
    return logits.exp() if logits.requires_grad else logits.exp_()


def kept_probs(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, tokens: Tokens
) -> Tensor:
    """Return softmax(query keyᵀ scale + mask) in float32 or more, for kept tokens.

    The softmax runs over every key; autocast is off, as it would turn float32 into bfloat16.
    Gradients flow where enabled.

    Returns:
        (..., queries, kept tokens)
    """
    with _exact(query.device.type):
        logits = _logits(precise(query), precise(key), mask, scale)
        probs = logits.softmax(-1)
    return picked(probs, tokens, -1)


def log_sums(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return the logarithms of the softmax's sums, computed in chunks of queries.

    Returns:
        (rows, heads, queries), float32 or more
    """
    rows, heads, queries = query.shape[:3]
    step = max(1, _CHUNK // max(1, rows * heads * key.shape[2]))
    parts = []
    with _exact(query.device.type):
        keys = precise(key)
        for start in range(0, queries, step):
            span = slice(start, start + step)
            part = mask if mask is None or mask.shape[-2] == 1 else mask[..., span, :]
            parts.append(_logits(precise(query[:, :, span]), keys, part, scale).logsumexp(-1))
    return torch.cat(parts, -1)


def _exact(device: str) -> AbstractContextManager[Any]:
    """Return a block without autocast, which would turn float32 into half precision."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or unchanged if it is more precise."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def picked(tensor: Tensor, tokens: Tokens, axis: int) -> Tensor:
    """Return a tensor's entries at some positions of an axis; a slice is not copied."""
    if not isinstance(tokens, slice):
        return tensor.index_select(axis, tokens)
    if tokens == slice(None):
        return tensor
    start, stop, _ = tokens.indices(tensor.shape[axis])
    return tensor.narrow(axis, start, stop - start)


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return masked(torch.matmul(query * scale, key.transpose(-1, -2)), mask)


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return logits with a boolean or additive mask applied."""
    if mask is None:
        return logits
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, float("-inf"))
    return logits + mask
