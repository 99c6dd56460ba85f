"""Editing handlers: cross-attention mixed per step, self-attention following the source."""

from __future__ import annotations

from collections.abc import Sequence

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

    def __init__(self, pairs: Sequence[tuple[Tensor, ...]]) -> None:
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


class _RowsEdited(AttentionCall):
    """A layer's attention with some rows edited: what edits of either kind share.

    Attributes:
        before: the call before the edit.
        rows: the edited rows.
        source: the source's queries and keys, if it is not in the batch.
    """

    def __init__(self, before: AttentionCall, rows: EditedRows, source: QueryKey | None) -> None:
        super().__init__(
            before.query, before.key, before.value, before.mask, before.scale, before.own
        )
        self.before = before
        self.rows = rows
        self.source = source

    def prepare(self) -> None:
        """Compute the output now, unless the processor computes it itself."""
        if self.own is not None:
            self.output()

    def scores(self) -> Tensor:
        """Return an explicit processor's probabilities with some rows edited."""
        own = self.before.scores()
        whole = own.unflatten(0, self.query.shape[:2])  # (batch, heads, queries, keys)
        return self.rows.joined(whole, self.edited_scores(whole)).flatten(0, 1)

    def edited_scores(self, whole: Tensor) -> Tensor:
        """Return the edited rows of an explicit processor's probabilities, in their dtype."""
        return self.edited().to(whole.dtype)

    def edited(self) -> Tensor:
        """Return the edited rows' probabilities, float32 (rows, heads, queries, keys)."""
        raise NotImplementedError

    def of_source(self) -> Tensor:
        """Return the source's probabilities, float32 (images, heads, queries, keys)."""
        if self.source is None:
            return self.before.probabilities(self.rows.span)
        return kept_probs(*self.source, None, self.scale, slice(None))

    def probabilities(self, rows: slice) -> Tensor:
        """Return the probabilities in effect, float32 (rows, heads, queries, keys)."""
        probs = self.before.probabilities(rows)
        return probs.index_copy(0, self.rows.edited - (rows.start or 0), self.edited())

    def maps(self, rows: slice, tokens: Tokens) -> Tensor:
        """Return some keys' maps in effect, (rows, heads, keys, queries)."""
        return picked(self.probabilities(rows), tokens, -1).transpose(-1, -2)


class _RowEditing(Handler):
    """Edit some rows of one layer's attention.

    Attributes:
        kept: the source kept from an earlier run; None if it is in the batch.
    """

    edits = True

    def __init__(self) -> None:
        super().__init__()
        self.kept: KeptCalls | None = None

    def source(self, call: AttentionCall) -> QueryKey | None:
        """Return the kept source's queries and keys; None if the source is in the batch."""
        return None if self.kept is None else self.kept.read(call)


class EditedCall(_RowsEdited):
    """A layer's cross-attention with some rows edited.

    Attributes:
        step: the step's edit.
    """

    def __init__(self, before: AttentionCall, step: CrossStep, source: QueryKey | None) -> None:
        super().__init__(before, step.rows, source)
        self.step = step
        self._edited: dict[bool, Tensor] = {}

    def output(self) -> Tensor:
        """Return the layer's output, by the form that measures faster."""
        if self._output is None:
            if prefers_probabilities(self.query):
                self._output = on_probabilities(self.before, self.step, self.edited())
            else:
                self._output = on_values(self.before, self.step, self.source)
        return self._output

    def edited(self) -> Tensor:
        """Return the edited rows' probabilities, (rows, heads, queries, tokens); computed once."""
        known = torch.is_grad_enabled()
        if known not in self._edited:
            taken = self.of_source()
            own = self._own() if self.step.owns else None
            self._edited[known] = edited_probabilities(self.step, taken, own)
        return self._edited[known]

    def _own(self) -> Tensor:
        rows = self.rows
        if rows.first is not None:
            return self.before.probabilities(slice(rows.first, len(self.query)))
        between = self.before.probabilities(rows.bounds)
        return between.index_select(0, rows.edited - rows.bounds.start)

    def probabilities(self, rows: slice) -> Tensor:
        """Return the probabilities in effect, float32 (rows, heads, queries, tokens)."""
        span, first = self.rows.span, self.rows.first
        whole = rows == slice(span.start, len(self.query))
        if self.source is None and first == span.stop and whole:
            return torch.cat([self.before.probabilities(span), self.edited()])
        return super().probabilities(rows)

    def maps(self, rows: slice, tokens: Tokens) -> Tensor:
        """Return some tokens' maps in effect, (rows, heads, tokens, queries)."""
        known = (rows.start, rows.stop, torch.is_grad_enabled())
        if known not in self._probs:
            self._probs[known] = self.probabilities(rows)
        return picked(self._probs[known], tokens, -1).transpose(-1, -2)


class CrossEditing(_RowEditing):
    """Edit one layer's cross-attention.

    Attributes:
        step: the step's edit; None if every row keeps the model's own call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step: CrossStep | None = None

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call with its edited rows replaced."""
        return call if self.step is None else EditedCall(call, self.step, self.source(call))


class FollowingCall(_RowsEdited):
    """A layer's self-attention with some rows attending as their source does."""

    def output(self) -> Tensor:
        """Return SDPA(q_src, k_src, v) for the following rows, the model's own for the rest."""
        if self._output is None:
            self._output = followed(self.before, self.rows, self.source)
        return self._output

    def edited_scores(self, whole: Tensor) -> Tensor:
        """Return the source's rows of an explicit processor's probabilities."""
        return self.rows.taken(whole)

    def edited(self) -> Tensor:
        """Return the source's probabilities for each following row; not kept, for their size."""
        return self.rows.spread(self.of_source())


class SelfEditing(_RowEditing):
    """Make some rows attend as their source does in one self-attention layer.

    Allocates no queries x queries matrix beyond those of the model's own call.

    Attributes:
        follow: the rows following their source; None if there are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.follow: EditedRows | None = None

    def transform(self, call: AttentionCall) -> AttentionCall:
        """Return the call with its following rows replaced."""
        return call if self.follow is None else FollowingCall(call, self.follow, self.source(call))


class Keeping(Handler):
    """Keep the source's queries and keys of one layer for later edits.

    Attributes:
        calls: the list to append to, queries and keys per denoiser call.
        rows: the source's rows of the batch.
    """

    edits = True  # a sliced processor's calls bring only some rows each

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, ...]] = []
        self.rows = slice(None)

    def observe(self, call: AttentionCall) -> None:
        """Keep a call's queries (images, heads, queries, channels) and keys."""
        refuse_unkept(call)
        query, key = call.query[self.rows], call.key[self.rows]
        self.calls.append((query.detach().clone(), key.detach().clone()))


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
