"""Probabilities of kept rows and tokens, beside a fused attention call."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import Compute


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, compute: Compute
) -> tuple[Tensor, Tensor] | None:
    """Gives the model's own output, and the logarithms of its softmax's sums.

    On the CPU, PyTorch's fused attention has these sums and throws them away; this is the operator
    that its ``scaled_dot_product_attention`` would choose, called by its own name. Maps then cost
    work for the kept tokens alone, and no matrix of queries x tokens is made.

    Returns:
        (batch, heads, queries, channels) and float32 (batch, heads, queries), or None where
        PyTorch would compute otherwise, or somebody else watches its calls.
    """
    if (
        mask is not None
        or query.device.type != "cpu"
        or not getattr(compute, "usual", False)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_function_stack()
        or type(query) is not Tensor
    ):
        return None
    scale = compute.scale  # type: ignore[attr-defined]
    if torch._fused_sdp_choice(query, key, value, scale=scale) != _FLASH:
        return None
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, scale=scale
    )
    return output, sums.detach().float()  # double where the queries are


_FLASH = 1  # SDPBackend.FLASH_ATTENTION


def kept_maps(
    query: Tensor, key: Tensor, scale: float, sums: Tensor, tokens: slice | Tensor
) -> Tensor:
    """Gives exp(query keyᵀ scale - sums) in float32, of the kept tokens alone.

    Args:
        query: (images, heads, queries, channels).
        key: (images, heads, tokens, channels).
        scale: the attention's.
        sums: logarithms of the softmax's sums, float32 (images, heads, queries).
        tokens: which positions are kept.

    Returns:
        (images, heads, kept tokens, queries)
    """
    key = key[:, :, tokens] if isinstance(tokens, slice) else key.index_select(2, tokens)
    images = len(key)
    query, key = query.detach().float().flatten(0, 1), key.detach().float().flatten(0, 1)
    sums = sums.flatten(0, 1)[:, None]  # (images x heads, 1, queries)
    logits = torch.baddbmm(sums, key, query.transpose(1, 2), beta=-1, alpha=scale)
    maps: Tensor = logits.exp_().unflatten(0, (images, -1))
    return maps


def kept_probs(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, tokens: slice | Tensor
) -> Tensor:
    """Gives softmax(query keyᵀ scale) in float32, of the kept tokens: (..., queries, tokens).

    The softmax runs over every key; no gradients flow through what is kept.
    """
    query, key = query.detach().float(), key.detach().float()
    probs = softmax_probs(query, key, None if mask is None else mask.detach(), scale).float()
    return probs[..., tokens] if isinstance(tokens, slice) else probs.index_select(-1, tokens)


def softmax_probs(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return softmax(query keyᵀ scale) in float32, or float64 of such queries, with gradients.

    Autocast, which would turn float32 into bfloat16 here, is off.

    Returns:
        (..., queries, tokens)
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = at_least_float32(query), at_least_float32(key)
        logits = torch.matmul(query * scale, key.transpose(-1, -2))
        if mask is not None:
            if mask.dtype == torch.bool:
                logits = logits.masked_fill(~mask, float("-inf"))
            else:
                logits = logits + mask
        return logits.softmax(-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is where it has more digits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def pick_rows(tensor: Tensor, rows: tuple[slice, ...]) -> Tensor:
    """Return the given rows of a batch."""
    if len(rows) == 1:
        return tensor[rows[0]]
    return torch.cat([tensor[span] for span in rows])
