"""Editing handlers: cross-attention mixed per step, self-attention following the source."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.forms import (
    CrossStep,
    EditedRows,
    QueryKey,
    edited_probabilities,
    followed,
    on_probabilities,
    on_values,
    prefers_probabilities,
)
from xattn.processors.probabilities import Tokens, kept_probs, picked


class KeptCalls:
    """The source's queries and keys in one layer, kept from an earlier run.

    Attributes:
        pairs: for each denoiser call the queries (images, heads, queries, channels) and keys.
        number: index of the current call.
    """

    def __init__(self, pairs: list[QueryKey]) -> None:
        self.pairs = pairs
        self.number = 0

    def read(self, call: AttentionCall) -> QueryKey:
        """Return the queries and keys of the current call.

        Raises:
            RuntimeError: the call has a mask, or its processor computes explicit probabilities.
        """
        refuse_unkept(call)
        query, key = self.pairs[self.number]
        return query.to(call.query), key.to(call.key)


def refuse_unkept(call: AttentionCall) -> None:
    """Raise RuntimeError if a source cannot be kept or reused in a call."""
    if call.own is None:
        raise RuntimeError(
            "this processor computes explicit probabilities, and a source "
            "cannot be kept: call pipe.unet.set_default_attn_processor() first"
        )
    if call.mask is not None:
        raise RuntimeError("a source cannot be kept with masked attention")


class EditedCall(AttentionCall):
    """A layer's cross-attention with some rows edited.

    Attributes:
        before: the call before the edit.
        step: the step's edit.
        source: the source's queries and keys, if it is not in the batch.
    """

    def __init__(self, before: AttentionCall, step: CrossStep, source: QueryKey | None) -> None:
        super().__init__(
            before.query, before.key, before.value, before.mask, before.scale, before.own
        )
        self.before = before
        self.step = step
        self.source = source
        self._edited: dict[bool, Tensor] = {}

    def output(self) -> Tensor:
        """Return the layer's output, by the form that measures faster."""
        if self._output is None:
            if prefers_probabilities(self.query):
                self._output = on_probabilities(self.before, self.step, self.edited())
            else:
                self._output = on_values(self.before, self.step, self.source)
        return self._output

    def prepare(self) -> None:
        """Compute the output now, unless the processor computes it itself."""
        if self.own is not None:
            self.output()

    def scores(self) -> Tensor:
        """Return an explicit processor's probabilities with some rows edited."""
        own = self.before.scores()
        whole = own.unflatten(0, self.query.shape[:2])  # (batch, heads, queries, tokens)
        return self.step.rows.joined(whole, self.edited().to(own.dtype)).flatten(0, 1)

    def edited(self) -> Tensor:
        """Return the edited rows' probabilities, (rows, heads, queries, tokens); computed once."""
        known = torch.is_grad_enabled()
        if known not in self._edited:
            rows = self.step.rows
            taken = (
                self._of_source()
                if self.source is not None
                else self.before.probabilities(rows.span)
            )
            own = self._own() if self.step.owns else None
            self._edited[known] = edited_probabilities(self.step, taken, own)
        return self._edited[known]

    def _of_source(self) -> Tensor:
        assert self.source is not None
        return kept_probs(*self.source, None, self.scale, slice(None))

    def _own(self) -> Tensor:
        rows = self.step.rows
        if rows.first is not None:
            return self.before.probabilities(slice(rows.first, len(self.query)))
        between = self.before.probabilities(rows.bounds)
        return between.index_select(0, rows.edited - rows.bounds.start)

    def probabilities(self, rows: slice) -> Tensor:
        """Return the probabilities in effect, float32 (rows, heads, queries, tokens)."""
        span, first = self.step.rows.span, self.step.rows.first
        if (
            self.source is None
            and first == span.stop
            and rows == slice(span.start, len(self.query))
        ):
            return torch.cat([self.before.probabilities(span), self.edited()])
        probs = self.before.probabilities(rows)
        edited = self.step.rows.edited
        return probs.index_copy(0, edited - rows.start, self.edited())

    def maps(self, rows: slice, tokens: Tokens) -> Tensor:
        """Return some tokens' maps in effect, (rows, heads, tokens, queries)."""
        known = (rows.start, rows.stop, torch.is_grad_enabled())
        if known not in self._probs:
            self._probs[known] = self.probabilities(rows)
        return picked(self._probs[known], tokens, -1).transpose(-1, -2)


class CrossEditing(Handler):
    """Edit one layer's cross-attention.

    Attributes:
        step: the step's edit; None if every row keeps the model's own call.
        kept: the source kept from an earlier run; None if it is in the batch.
    """

    edits = True

    def __init__(self) -> None:
        super().__init__()
        self.step: CrossStep | None = None
        self.kept: KeptCalls | None = None

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call with its edited rows replaced."""
        if self.step is None:
            return call
        return EditedCall(call, self.step, None if self.kept is None else self.kept.read(call))


class FollowingCall(AttentionCall):
    """A layer's self-attention with some rows attending as their source does.

    Attributes:
        before: the call before the edit.
        rows: the rows following the source.
        source: the source's queries and keys, if it is not in the batch.
    """

    def __init__(self, before: AttentionCall, rows: EditedRows, source: QueryKey | None) -> None:
        super().__init__(
            before.query, before.key, before.value, before.mask, before.scale, before.own
        )
        self.before = before
        self.rows = rows
        self.source = source

    def output(self) -> Tensor:
        """Return SDPA(q_src, k_src, v) for the following rows, the model's own for the rest."""
        if self._output is None:
            self._output = followed(self.before, self.rows, self.source)
        return self._output

    def prepare(self) -> None:
        """Compute the output now, unless the processor computes it itself."""
        if self.own is not None:
            self.output()

    def scores(self) -> Tensor:
        """Return an explicit processor's probabilities, the source's for following rows."""
        own = self.before.scores()
        whole = own.unflatten(0, self.query.shape[:2])  # (batch, heads, queries, queries)
        return self.rows.joined(whole, self.rows.taken(whole)).flatten(0, 1)

    def probabilities(self, rows: slice) -> Tensor:
        """Return the probabilities in effect, float32 (rows, heads, queries, queries)."""
        probs = self.before.probabilities(rows)
        if self.source is None:
            taken = self.before.probabilities(self.rows.span)
        else:
            taken = kept_probs(*self.source, None, self.scale, slice(None))
        edited = self.rows.edited - (rows.start or 0)
        return probs.index_copy(0, edited, self.rows.spread(taken))

    def maps(self, rows: slice, tokens: Tokens) -> Tensor:
        """Return some keys' maps in effect, (rows, heads, keys, queries)."""
        return picked(self.probabilities(rows), tokens, -1).transpose(-1, -2)


class SelfEditing(Handler):
    """Make some rows attend as their source does in one self-attention layer.

    Allocates no queries x queries matrix beyond those of the model's own call.

    Attributes:
        follow: the rows following their source; None if there are none.
        kept: the source kept from an earlier run; None if it is in the batch.
    """

    edits = True

    def __init__(self) -> None:
        super().__init__()
        self.follow: EditedRows | None = None
        self.kept: KeptCalls | None = None

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call with its following rows replaced."""
        if self.follow is None:
            return call
        return FollowingCall(call, self.follow, None if self.kept is None else self.kept.read(call))


class Keeping(Handler):
    """Keep the source's queries and keys of one layer for later edits.

    Attributes:
        pairs: the list to append to, one pair per denoiser call.
        rows: the source's rows of the batch.
    """

    edits = True  # a sliced processor's calls bring only some rows each

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[QueryKey] = []
        self.rows = slice(None)

    def observe(self, call: AttentionCall) -> None:
        """Keep a call's queries (images, heads, queries, channels) and keys."""
        refuse_unkept(call)
        query, key = call.query[self.rows], call.key[self.rows]
        self.pairs.append((query.detach().clone(), key.detach().clone()))


class Blending(Handler):
    """Add one layer's maps of every token to a sum, for LocalBlend's masks.

    Attributes:
        rows: the conditional rows of the batch.
        total: float32 (rows, tokens, height, width); the mean over heads is added here.
        share: this layer's weight in the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows = slice(None)
        self.total: Tensor | None = None
        self.share = 1.0

    def observe(self, call: AttentionCall) -> None:
        """Add the maps in effect."""
        if self.total is None:
            return
        call.prepare()
        with torch.no_grad():
            maps = call.maps(self.rows, slice(None)).mean(1)  # (rows, tokens, queries)
            self.total.add_(maps.unflatten(-1, self.total.shape[-2:]), alpha=self.share)
