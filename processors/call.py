"""The call in the middle of an attention layer, and who handles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional as F

Compute = Callable[..., Tensor]


class Handler(Protocol):
    """What stands in the middle of a wrapped layer.

    A handler must give back exactly what ``compute`` gives wherever it has nothing to change.

    Attributes:
        live: whether calls are handed over; while False the layer runs as it was found.
        over: whether the handler is done for good, and its wrapper may be taken out.
    """

    live: bool
    over: bool

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives the layer's output (batch, heads, queries, channels).

        ``compute(query, key, value, mask)`` is the model's own call, on any rows of the batch.
        """

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives probabilities (batch x heads, queries, tokens) for an explicit processor.

        A sliced processor calls it several times in a layer's call, each with the next rows.
        """

    def opened(self) -> None:
        """Is told that a call of the layer begins."""

    def closed(self) -> None:
        """Is told that a call of the layer came to its end."""


class LayerHandler:
    """What every handler of one layer has; its own ``attend`` and ``scores`` make it a ``Handler``.

    Attributes:
        name: the layer's.
        heads: how many it has.
        live: whether calls are looked at; while False the layer runs as it was found.
        over: whether the handler is done for good.
        seen: whether the call under way came by.
    """

    def __init__(self, name: str, heads: int) -> None:
        self.name = name
        self.heads = heads
        self.live = False
        self.over = False
        self.seen = False

    def opened(self) -> None:
        """Does nothing."""

    def closed(self) -> None:
        """Does nothing."""


class OwnCall:
    """The model's own call of scaled dot-product attention, on any rows of the batch.

    Attributes:
        scale: what the model passed.
        usual: whether it is softmax(query keyᵀ scale) value and nothing else, but for a mask.
    """

    def __init__(self, extra: dict[str, Any]) -> None:
        self.extra = extra
        self.scale: float | None = extra["scale"]
        self.usual = not (extra["dropout_p"] or extra["is_causal"] or "enable_gqa" in extra)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Gives the output (rows, heads, queries, channels)."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.extra)
