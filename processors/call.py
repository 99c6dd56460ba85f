"""One layer's attention call, and the base of the handlers that act on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.processors.columns import live_columns
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
    """The places of image and text in one row of a joint attention call.

    Attributes:
        queries: the image's queries, in grid order.
        text: the keys of the token axis, in its order.
        image: the image's keys.
        short: whether the token axis goes on behind this row's text; nothing of the row stands
            there, and its maps are zero.
    """

    queries: slice
    text: Tokens
    image: slice
    short: bool = False

    @property
    def own(self) -> slice:
        """The keys of the queries' own positions, the first of the image's."""
        return slice(self.image.start, self.image.start + self.queries.stop - self.queries.start)

    @property
    def key(self) -> Any:
        """A key that identifies the place; tensors compare by identity."""
        text = (self.text.start, self.text.stop) if isinstance(self.text, slice) else id(self.text)
        return self.queries.start, self.queries.stop, text


Locate = Callable[[int, int], Sequence[Place] | None]
"""A function from a call's numbers of queries and keys to each row's place of text and image."""


class AttentionCall:
    """One layer's attention: its inputs, the model's own call, and cached probabilities.

    Attributes:
        query: (batch, heads, queries, channels).
        key: (batch, heads, keys, channels).
        value: (batch, heads, keys, channels).
        mask: the call's boolean or additive mask, or None.
        scale: the attention scale.
        own: the model's own call.
        row: the row of the batch that the call is of; None if it is of all rows.
    """

    row: int | None = None

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
        """Places of text and image in each row; None if all keys are text."""
        if self.locate is None:
            return None
        found = self.locate(self.query.shape[2], self.key.shape[2])
        return found if found is None or self.row is None else found[self.row : self.row + 1]

    def mask_of(self, rows: Any) -> Tensor | None:
        """Return the mask of some rows, selected by a slice or indices."""
        if self.mask is None or self.mask.ndim < 4 or len(self.mask) == 1:
            return self.mask
        return self.mask[rows]

    def attend(self, value: Tensor) -> Tensor:
        """Return the model's own output for other values; keep the softmax's sums."""
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
        raise TypeError("this processor does not compute explicit probabilities")

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
        """Return the image's probabilities for some tokens, (rows, heads, tokens, queries).

        Args:
            rows: rows of the batch.
            tokens: positions on the token axis.
        """
        places = self.places
        if places is not None:
            spans = alike(places, rows)
            return torch.cat([self._maps_at(span, place, tokens) for span, place in spans])
        known = (rows.start, rows.stop, torch.is_grad_enabled())
        cheap = self._has_sums() or self._is_live()
        if known not in self._probs and cheap and not _is_all(tokens):
            return self._from_sums(rows, slice(None), tokens)
        return picked(self.probabilities(rows), tokens, -1).transpose(-1, -2)

    def _maps_at(self, rows: slice, place: Place, tokens: Tokens) -> Tensor:
        text = place.text
        if not isinstance(text, slice):
            return self._from_sums(rows, place.queries, text[tokens])
        if not place.short:
            return self._from_sums(rows, place.queries, _shifted(tokens, text))
        return self._short_maps(rows, place.queries, text, tokens)

    def _short_maps(self, rows: slice, queries: slice, text: slice, tokens: Tokens) -> Tensor:
        """Return maps of a text that is shorter than the axis: zeros behind its end."""
        length = text.stop - text.start
        if isinstance(tokens, slice):
            start, stop = tokens.start or 0, length if tokens.stop is None else tokens.stop
            inside = slice(text.start + min(start, length), text.start + min(stop, length))
            found = self._from_sums(rows, queries, inside)
            return F.pad(found, (0, 0, 0, stop - start - found.shape[2]))
        keys = tokens.clamp(max=length - 1) + text.start
        found = self._from_sums(rows, queries, keys)
        maps: Tensor = found * (tokens < length)[:, None]
        return maps

    def affinity(self, rows: slice) -> Tensor:
        """Return the image's probabilities for the image, averaged over heads.

        In a joint call these are its queries' shares of their own positions' keys, and sum to what
        the text leaves. One head at a time: the matrices are the largest of a call.

        Returns:
            float32 (rows, queries, queries)
        """
        places = self.places
        if places is None:
            return self.probabilities(rows).mean(1)
        if not self._has_sums():
            self._sums = log_sums(self.query, self.key, self.mask, self.scale)
        return torch.cat([self._affinity_at(span, place) for span, place in alike(places, rows)])

    def _affinity_at(self, rows: slice, place: Place) -> Tensor:
        assert self._sums is not None
        queries, mask = place.queries, self.mask_of(rows)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        query, sums = self.query[rows][:, :, queries], self._sums[rows][:, :, queries]
        key, heads = self.key[rows], query.shape[1]
        total = query.new_zeros((), dtype=torch.float32)
        for head in (slice(n, n + 1) for n in range(heads)):
            masks = mask if mask is None or mask.shape[1] == 1 else mask[:, head]
            total = total + kept_maps(
                query[:, head], key[:, head], self.scale, sums[:, head], place.own, masks
            )
        return total[:, 0].transpose(-1, -2) / heads

    def prepare(self) -> None:
        """Compute the output now, with gradients where enabled; maps are then cheaper."""
        self.output()

    def sums(self, rows: slice) -> Tensor | None:
        """Return the logarithms of the softmax's sums, float32 (rows, heads, queries), if known.

        They are known where the model's own call, made for the output, left them.
        """
        return self._sums[rows] if self._has_sums() and self._sums is not None else None

    def _has_sums(self) -> bool:
        """Return whether the model's own call left its softmax's sums (without gradients)."""
        return self._sums is not None and not torch.is_grad_enabled()

    def _is_live(self) -> bool:
        """Return whether maps carry gradients, in a call that isn't being compiled."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        fixed = self.mask is None or not self.mask.requires_grad
        return fixed and (self.query.requires_grad or self.key.requires_grad)

    def _from_sums(self, rows: slice, queries: slice, keys: Tokens) -> Tensor:
        query, key, mask = self.query[rows], self.key[rows], self.mask_of(rows)
        if self._is_live():
            if mask is not None and mask.shape[-2] > 1:
                mask = mask[..., queries, :]
            known = None if self._sums is None else self._sums[rows][:, :, queries]
            return live_columns(query[:, :, queries], key, mask, self.scale, keys, known)
        if self._has_sums():
            assert self._sums is not None
            sums = self._sums[rows]
        else:
            sums = log_sums(query, key, mask, self.scale)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., queries, :]
        if queries != slice(None):
            query, sums = query[:, :, queries], sums[:, :, queries]
        return kept_maps(query, key, self.scale, sums, keys, mask)


class ScoresCall(AttentionCall):
    """The attention of an explicit processor, which only requests probabilities.

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
        """Raise TypeError: an explicit processor applies its probabilities to the values itself."""
        raise TypeError("an explicit processor computes its own output; call scores()")

    def scores(self) -> Tensor:
        """Return the model's own probabilities, (batch x heads, queries, keys)."""
        if self._output is None:
            self._output = self.compute(*self.given)
        return self._output

    def prepare(self) -> None:
        """Do nothing: scores are computed when the processor requests them."""


class Handler:
    """Base class of objects acting on a layer's attention: they observe or replace the call.

    A handler with nothing to change returns the call it received.

    Attributes:
        live: whether it receives calls; the layer runs unchanged while no handler is live.
        seen: whether it received the current denoiser call.
        edits: whether it may change the call, and so needs the whole batch at once.
    """

    edits = False

    def __init__(self) -> None:
        self.live = False
        self.seen = False

    def observe(self, call: AttentionCall) -> None:
        """Observe a call without changing it."""

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call in effect from here on."""
        self.observe(call)
        return call


def alike(places: Sequence[Place], rows: slice) -> list[tuple[slice, Place]]:
    """Return consecutive rows that share one place, with this place."""
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
        shifted: Tensor = tokens + text.start
        return shifted
    stop = text.stop if tokens.stop is None else text.start + tokens.stop
    return slice(text.start + (tokens.start or 0), stop)
