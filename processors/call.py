"""One layer's attention in flight, and who may act on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.processors.probabilities import (
    Tokens,
    fused_attention,
    kept_maps,
    kept_probs,
    log_sums,
    picked,
)


@dataclass(frozen=True)
class Place:
    """Where image and text stand in one row of a call that attends to both.

    Attributes:
        queries: the image's queries, in the order of the grid.
        text: the keys of the token axis' positions, in their order.
        image: the image's keys.
    """

    queries: slice
    text: Tokens
    image: slice

    @property
    def key(self) -> Any:
        """What tells this place from another; tensors by identity."""
        text = (self.text.start, self.text.stop) if isinstance(self.text, slice) else id(self.text)
        return self.queries.start, self.queries.stop, text


Locate = Callable[[int, int], Sequence[Place] | None]
"""Where text and image stand for each row, from a call's numbers of queries and keys."""


class OwnCall:
    """The model's own call of scaled dot-product attention, on any rows of the batch.

    Attributes:
        scale: what the model passed.
        usual: whether it is softmax(query keyᵀ scale + mask) value and nothing else.
    """

    def __init__(self, extra: dict[str, Any]) -> None:
        self.extra = extra
        self.scale: float | None = extra["scale"]
        self.usual = not (extra["dropout_p"] or extra["is_causal"] or "enable_gqa" in extra)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return the output (rows, heads, queries, channels)."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.extra)


class AttentionCall:
    """One layer's attention: its inputs, the model's own call, and its probabilities, once.

    Attributes:
        query: (batch, heads, queries, channels).
        key: (batch, heads, keys, channels).
        value: (batch, heads, keys, channels).
        mask: the call's own, boolean or additive, or None.
        scale: the attention's.
        own: the model's own call.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        own: Any,
        locate: Locate | None = None,
    ) -> None:
        self.query = query
        self.key = key
        self.value = value
        self.mask = mask
        self.scale = scale
        self.own = own
        self.locate = locate
        self._output: Tensor | None = None
        self._sums: Tensor | None = None
        self._probs: dict[Any, Tensor] = {}

    @property
    def places(self) -> Sequence[Place] | None:
        """Where text and image stand in each row; None where all keys are text's."""
        return None if self.locate is None else self.locate(self.query.shape[2], self.key.shape[2])

    def mask_of(self, rows: Any) -> Tensor | None:
        """Return the mask of some rows, given as a slice or as indices."""
        if self.mask is None or self.mask.ndim < 4 or len(self.mask) == 1:
            return self.mask
        return self.mask[rows]

    def attend(self, value: Tensor) -> Tensor:
        """Return the model's own output for other values of every row; keep the softmax's sums."""
        fused = fused_attention(self.query, self.key, value, self.mask, self.own)
        if fused is None:
            return self.own(self.query, self.key, value, self.mask)  # type: ignore[no-any-return]
        output, self._sums = fused
        return output

    def output(self) -> Tensor:
        """Return the layer's output, (batch, heads, queries, channels)."""
        if self._output is None:
            self._output = self.attend(self.value)
        return self._output

    def scores(self) -> Tensor:
        """Return an explicit processor's probabilities, (batch x heads, queries, keys)."""
        raise TypeError("this processor doesn't write its probabilities out")

    def probabilities(self, rows: slice) -> Tensor:
        """Return softmax(query keyᵀ) in float32, (rows, heads, queries, keys); computed once."""
        known = (rows.start, rows.stop, torch.is_grad_enabled())
        if known not in self._probs:
            if self._has_sums():
                probs = self._from_sums(rows, slice(None), slice(None)).transpose(-1, -2)
            else:
                probs = kept_probs(
                    self.query[rows], self.key[rows], self.mask_of(rows), self.scale, slice(None)
                )
            self._probs[known] = probs
        return self._probs[known]

    def maps(self, rows: slice, tokens: Tokens) -> Tensor:
        """Return the image's probabilities of some tokens, (rows, heads, tokens, queries).

        Args:
            rows: rows of the batch.
            tokens: positions on the token axis.
        """
        places = self.places
        if places is not None:
            spans = _alike(places, rows)
            return torch.cat([self._maps_at(span, place, tokens) for span, place in spans])
        known = (rows.start, rows.stop, torch.is_grad_enabled())
        if known not in self._probs and self._has_sums() and not _is_all(tokens):
            return self._from_sums(rows, slice(None), tokens)
        return picked(self.probabilities(rows), tokens, -1).transpose(-1, -2)

    def _maps_at(self, rows: slice, place: Place, tokens: Tokens) -> Tensor:
        text = place.text
        keys = _shifted(tokens, text) if isinstance(text, slice) else text[tokens]
        return self._from_sums(rows, place.queries, keys)

    def prepare(self) -> None:
        """Make the output now, with gradients where they are on; maps then cost less."""
        self.output()

    def _has_sums(self) -> bool:
        """Whether the model's own call was made and left its softmax's sums, without gradients."""
        return self._sums is not None and not torch.is_grad_enabled()

    def _from_sums(self, rows: slice, queries: slice, keys: Tokens) -> Tensor:
        query, key, mask = self.query[rows], self.key[rows], self.mask_of(rows)
        if self._has_sums():
            assert self._sums is not None
            sums = self._sums[rows]
        else:
            sums = log_sums(query, key, mask, self.scale)
        if mask is not None and mask.ndim == 4 and mask.shape[-2] > 1:
            mask = mask[:, :, queries]
        return kept_maps(query[:, :, queries], key, self.scale, sums[:, :, queries], keys, mask)


class ScoresCall(AttentionCall):
    """The attention of an explicit processor, which asks for probabilities and nothing else.

    Attributes:
        compute: the model's own ``get_attention_scores``, on (batch x heads, ...) tensors.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        heads: int,
        compute: Callable[..., Tensor],
        locate: Locate | None = None,
    ) -> None:
        self.given = (query, key, mask)
        self.compute = compute
        whole = None if mask is None else mask.unflatten(0, (-1, heads)) if len(mask) > 1 else mask
        query, key = query.unflatten(0, (-1, heads)), key.unflatten(0, (-1, heads))
        super().__init__(query, key, key, whole, scale, None, locate)

    def output(self) -> Tensor:
        """Raise TypeError: values never reach an explicit processor's scores."""
        raise TypeError("an explicit processor's output is its own; ask for scores()")

    def scores(self) -> Tensor:
        """Return the model's own probabilities, (batch x heads, queries, keys)."""
        if self._output is None:
            self._output = self.compute(*self.given)
        return self._output

    def prepare(self) -> None:
        """Do nothing: scores are computed when the processor is to have them."""


class Handler:
    """What acts on a layer's attention; it observes the call, or puts another in its place.

    A handler with nothing to change returns the call that it was handed.

    Attributes:
        live: whether calls are handed over; while no handler is live the layer runs as found.
        seen: whether the denoiser call under way came by.
        edits: whether it may change the call, and so needs the whole batch at once.
    """

    edits = False

    def __init__(self) -> None:
        self.live = False
        self.seen = False

    def observe(self, call: AttentionCall) -> None:
        """Look at a call; change nothing."""

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call that is in effect from here on."""
        self.observe(call)
        return call


class Chain:
    """The handlers of one layer, in order: what stands later sees what is in effect.

    Attributes:
        name: the layer's.
        heads: how many it has.
        nth: which attention call of the layer is handed over; the others pass unseen.
        live: whether any of the handlers is; while not, the layer runs as it was found.
        over: whether the chain is done for good, and its wrapper may be taken out.
        locate: where text and image stand in the denoiser call under way.
    """

    def __init__(self, name: str, heads: int, handlers: Sequence[Handler], nth: int = 0) -> None:
        self.name = name
        self.heads = heads
        self.handlers = tuple(handlers)
        self.nth = nth
        self.live = False
        self.over = False
        self.locate: Locate | None = None
        self._parts: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def wake(self) -> None:
        """See the next call, where a handler is live."""
        self.live = any(handler.live for handler in self.handlers)

    def sleep(self) -> None:
        """Let the layer run as it was found, until some handlers are live again."""
        self.live = False
        for handler in self.handlers:
            handler.live = handler.seen = False

    @property
    def blind(self) -> bool:
        """Whether a live handler missed the call under way."""
        return any(handler.live and not handler.seen for handler in self.handlers)

    @property
    def edits(self) -> bool:
        """Whether a live handler may change the call."""
        return any(handler.live and handler.edits for handler in self.handlers)

    def opened(self) -> None:
        """Begin a call of the layer: forget what an interrupted one left."""
        self._parts = []

    def attend(self, call: AttentionCall) -> Tensor:
        """Return the layer's output, the handlers applied."""
        return self._handled(call).output()

    def scores(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        batch: int,
        compute: Callable[..., Tensor],
    ) -> Tensor:
        """Return probabilities (some of batch x heads, queries, keys) for an explicit processor.

        A sliced processor calls several times, each with the next rows; they are handed over
        together after the last.
        """
        if len(query) == batch * self.heads:
            return self._handled(
                ScoresCall(query, key, mask, scale, self.heads, compute, self.locate)
            ).scores()
        if self.edits:
            raise TypeError(
                f"layer {self.name} computes a few rows at a time, and edits need the source "
                "beside its siblings; call pipe.disable_attention_slicing() first"
            )
        self._parts.append((query, key, mask))
        if sum(len(part[0]) for part in self._parts) >= batch * self.heads:
            queries, keys = (torch.cat([part[i] for part in self._parts]) for i in (0, 1))  # type: ignore[misc]
            masks = [part[2] for part in self._parts if part[2] is not None]
            whole = torch.cat(masks) if masks else None
            self._handled(ScoresCall(queries, keys, whole, scale, self.heads, compute, self.locate))
            self._parts = []
        return compute(query, key, mask)

    def _handled(self, call: AttentionCall) -> AttentionCall:
        for handler in self.handlers:
            if handler.live:
                call = handler.transform(call)
                handler.seen = True
        return call


def _alike(places: Sequence[Place], rows: slice) -> list[tuple[slice, Place]]:
    """Return spans of rows that have one place, each with it."""
    spans: list[tuple[slice, Place]] = []
    for row in range(*rows.indices(len(places))):
        place = places[row]
        if spans and spans[-1][1].key == place.key:
            spans[-1] = (slice(spans[-1][0].start, row + 1), place)
        else:
            spans.append((slice(row, row + 1), place))
    return spans


def _is_all(tokens: Tokens) -> bool:
    return isinstance(tokens, slice) and tokens == slice(None)


def _shifted(tokens: Tokens, text: slice) -> Tokens:
    if not isinstance(tokens, slice):
        return tokens + text.start
    stop = text.stop if tokens.stop is None else text.start + tokens.stop
    return slice(text.start + (tokens.start or 0), stop)
