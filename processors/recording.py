"""Keeping the probabilities that were asked for, and nothing else of the attention call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn.processors.wrapping import Compute, LayerHandler


class Recording(LayerHandler):
    """Writes one layer's probabilities into its buffer, and leaves the layer's output alone.

    Attributes:
        rows: the rows of the batch that are recorded, as slices of it.
        batch: how many rows the denoiser's call has.
        images: how many of them are recorded; the buffer may have room for more.
        tokens: the positions that are kept: a slice where they follow one another.
        buffer: (images, heads or 1, tokens, height, width), float32, where maps are written.
        share: what one layer adds to the buffer; None where the buffer is its own.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__(name, heads)
        self.rows: tuple[slice, ...] = ()
        self.batch = 0
        self.images = 0
        self.tokens: slice | Tensor = slice(None)
        self.buffer: Tensor | None = None
        self.share: float | None = None
        self.parts: list[Tensor] = []

    def opened(self) -> None:
        """Forgets what an interrupted call of a sliced processor left."""
        self.parts = []

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives the model's own output, and keeps the maps of its conditional rows."""
        if query.shape[:2] != (self.batch, self.heads):
            raise RuntimeError(
                f"layer {self.name} attends with {tuple(query.shape[:2])} (rows, heads) where the "
                f"denoiser has {(self.batch, self.heads)}: xattn doesn't know what its rows are"
            )
        fused = fused_attention(query, key, value, mask, compute)
        if fused is None:
            self.keep(query, key, mask, scale)
            return compute(query, key, value, mask)
        output, sums = fused
        self.keep_fused(query, key, scale, sums)
        return output

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives the model's own probabilities, and keeps those of its conditional rows."""
        probs = kept_probs(query, key, mask, attn.scale, self.tokens)
        self.parts.append(probs)  # (some of batch x heads, queries, tokens)
        if sum(map(len, self.parts)) >= self.batch * self.heads:
            whole = torch.cat(self.parts).unflatten(0, (-1, self.heads))
            self.write(_pick(whole, self.rows))
            self.parts = []
        return compute(query, key, mask)

    def keep(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> None:
        """Writes the maps of (batch, heads, queries, channels) queries and keys."""
        if mask is not None and mask.shape[0] > 1:
            mask = _pick(mask, self.rows)
        query, key = _pick(query, self.rows), _pick(key, self.rows)
        self.write(kept_probs(query, key, mask, scale, self.tokens))

    def keep_fused(self, query: Tensor, key: Tensor, scale: float, sums: Tensor) -> None:
        """Writes the maps of queries and keys whose softmax has the given sums."""
        query, key, sums = (_pick(t, self.rows) for t in (query, key, sums))
        self.write_maps(kept_maps(query, key, scale, sums, self.tokens))

    def write(self, probs: Tensor) -> None:
        """Writes (images, heads, queries, tokens) into the buffer."""
        if self.buffer is not None and self.buffer.shape[1] == 1:
            probs = probs.mean(1, keepdim=True)
        self.write_maps(probs.transpose(-1, -2))

    def write_maps(self, maps: Tensor) -> None:
        """Writes (images, heads, tokens, queries) into the buffer."""
        if self.buffer is None:
            return
        # (images, heads or 1, tokens, queries)
        buffer = self.buffer[: self.images].flatten(-2)
        if maps.shape[-1] != buffer.shape[-1]:
            raise RuntimeError(
                f"layer {self.name} has {maps.shape[-1]} queries where a grid of "
                f"{tuple(self.buffer.shape[-2:])} was expected; please report the model's "
                "configuration"
            )
        averaged = buffer.shape[1] == 1 < maps.shape[1]
        if averaged and self.share is None:
            torch.mean(maps, 1, keepdim=True, out=buffer)
        else:
            maps = maps.mean(1, keepdim=True) if averaged else maps
            buffer.copy_(maps) if self.share is None else buffer.add_(maps, alpha=self.share)
        self.seen = True


class Affinity(LayerHandler):
    """Adds one layer's attention of the image to itself to a buffer, and leaves its output alone.

    Attributes:
        rows: the rows of the batch that are recorded.
        buffer: (images, queries, queries), float32, where the mean over heads is added.
        share: what this layer adds of it.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__(name, heads)
        self.rows = slice(None)
        self.buffer: Tensor | None = None
        self.share = 1.0

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives the model's own output, and adds what the conditional rows attend to."""
        part = mask if mask is None or len(mask) == 1 else mask[self.rows]
        self._add(kept_probs(query[self.rows], key[self.rows], part, scale, slice(None)))
        return compute(query, key, value, mask)

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives an explicit processor's own probabilities, and adds the conditional rows'.

        A sliced processor's calls bring some rows each, and are refused.
        """
        probs = compute(query, key, mask)
        several = len(probs) % self.heads == 0
        whole = probs.unflatten(0, (-1, self.heads))[self.rows] if several else probs[:0]
        if self.buffer is None or len(whole) != len(self.buffer):
            raise RuntimeError(
                f"layer {self.name} computes a few rows at a time, and affinity=True needs them "
                "all; call pipe.disable_attention_slicing() first"
            )
        self._add(whole.detach().float())
        return probs

    def _add(self, probs: Tensor) -> None:
        if self.buffer is not None:
            self.buffer[: len(probs)].add_(probs.mean(1), alpha=self.share)
        self.seen = True


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


def _pick(tensor: Tensor, rows: tuple[slice, ...]) -> Tensor:
    if len(rows) == 1:
        return tensor[rows[0]]
    return torch.cat([tensor[span] for span in rows])
