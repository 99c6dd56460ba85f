"""The model's own attention call, kept so that its output is its own to the last bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


class OwnCall:
    """The model's own scaled dot-product attention, callable on any rows of the batch.

    Where several heads of queries share one of keys, handlers see the shared ones repeated. The
    model's own tensors are kept, so that its own output is made of them.

    Attributes:
        scale: the scale passed by the model.
        usual: whether it is exactly softmax(query keyᵀ scale + mask) value.
    """

    def __init__(self, extra: dict[str, Any]) -> None:
        self.extra = extra
        self.scale: float | None = extra["scale"]
        self.usual = not (extra["dropout_p"] or extra["is_causal"])
        self._given: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def repeated(self, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Return keys and values with one head for each of the queries'."""
        each = heads // key.shape[1]
        keys, values = (t.repeat_interleave(each, 1) if each > 1 else t for t in (key, value))
        self._given = keys, values, key, value
        return keys, values

    def asked(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Return keys and values as the model gave them, and whether heads may share them."""
        given = self._given
        if given is None or key is not given[0] or value is not given[1]:
            return key, value, False
        return given[2], given[3], True

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output (rows, heads, queries, channels)."""
        key, value, shared = self.asked(key, value)
        extra = {**self.extra, "enable_gqa": True} if shared else self.extra
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **extra)
