"""Columns of attention probabilities with gradients, and no matrix of queries x keys kept.

A column P_t = exp(query key_tᵀ scale - L), with L the logarithms of the softmax's sums, depends on
every key through L. Its gradient needs two sums over all keys, which the backward pass computes a
chunk of queries at a time:

    g_t = dP_t P_t,    s = sum over t of g_t
    dquery = scale (sum over t of g_t key_t - s sum over k of P_k key_k)
    dkey_k = scale (sum over q of g_k query - sum over q of P_k s query)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xattn.processors.probabilities import Tokens, log_sums, masked, picked, precise

_CHUNK = 2**22  # logits at a time in the backward pass: 16 MB


def live_columns(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    keys: Tokens,
    sums: Tensor | None = None,
) -> Tensor:
    """Return softmax(query keyᵀ scale + mask) for some keys, with gradients.

    Args:
        query: (rows, heads, queries, channels), those of the image alone.
        key: (rows, heads, keys, channels), all of them.
        mask: boolean or additive, broadcastable to (rows, heads, queries, keys); without
            gradients of its own.
        scale: the attention scale.
        keys: the keys to return.
        sums: logarithms of the softmax's sums, (rows, heads, queries), where they are known.

    Returns:
        (rows, heads, kept keys, queries), float32 or more; it keeps the returned columns and one
        number for each query besides the query and key themselves.
    """
    with torch.autocast(query.device.type, enabled=False):
        columns: Tensor = _Columns.apply(  # type: ignore[no-untyped-call]
            query, key, mask, scale, keys, sums
        )
    return columns


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        keys: Tokens,
        sums: Tensor | None,
    ) -> Tensor:
        if sums is None or query.dtype == torch.float64:
            sums = log_sums(query, key, mask, scale)
        chosen = precise(picked(key, keys, 2))
        logits = chosen @ precise(query).transpose(-1, -2) * scale  # (rows, heads, kept, queries)
        if mask is not None:
            part = mask if mask.shape[-1] == 1 else picked(mask, keys, -1)
            logits = masked(logits, part.transpose(-1, -2))
        columns = (logits - sums[:, :, None]).exp_()
        ctx.save_for_backward(query, key, mask, sums, columns)
        ctx.scale, ctx.keys = scale, keys
        return columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, mask, sums, columns = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            g = grads[0] * columns  # (rows, heads, kept, queries)
            whole, exact, keys = precise(query), precise(key), ctx.keys
            dquery = g.transpose(-1, -2) @ picked(exact, keys, 2)
            own = g @ whole  # (rows, heads, kept, channels)
            drift = g.sum(2)  # s, (rows, heads, queries)
            dkey = torch.zeros_like(exact)
            step = max(1, _CHUNK // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
            for start in range(0, query.shape[2], step):
                span = slice(start, start + step)
                part = mask if mask is None or mask.shape[-2] == 1 else mask[..., span, :]
                logits = whole[:, :, span] @ exact.transpose(-1, -2) * ctx.scale
                probs = (masked(logits, part) - sums[:, :, span, None]).exp_()
                probs *= drift[:, :, span, None]  # (rows, heads, queries, keys)
                dquery[:, :, span] -= probs @ exact
                dkey -= probs.transpose(-1, -2) @ whole[:, :, span]
            if isinstance(keys, slice):
                picked(dkey, keys, 2).add_(own)
            else:
                dkey.index_add_(2, keys, own)
        scaled = (dquery * ctx.scale).to(query.dtype), (dkey * ctx.scale).to(key.dtype)
        return (*scaled, None, None, None, None)
