"""Prompt-to-prompt inside the attention call (Hertz et al. 2022, section 3), on values.

Everything that an edit does to probabilities is linear in them, so nothing has to be materialised:

    A · mix · V + B · own · V  =  SDPA(q_src, k_src, mix · V) + SDPA(q, k, own · V)

with ``mix`` and ``own`` as ``EditPlan.cross`` gives them. Cross-attention of few queries is faster
with explicit probabilities, and takes that form; self-attention always acts on values. Rows of the
batch that aren't edited in a step go through the model's own call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn.processors.call import Compute, LayerHandler
from xattn.processors.forms import CrossStep, Origin, Rows, edited_cross_attention, followed
from xattn.processors.probabilities import at_least_float32, kept_probs
from xattn.processors.recording import Recording


class CrossEditing(Recording):
    """Edits one layer's cross-attention, and records what it has in effect.

    Attributes:
        step: what the step does; None where every row takes the model's own call.
        origin: what is kept of the source, or was; None where it is in the batch.
        words: where LocalBlend's layers add their maps, float32 (rows, tokens, height, width).
        words_share: what this layer adds of its mean over heads.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__(name, heads)
        self.step: CrossStep | None = None
        self.origin: Origin | None = None
        self.words: Tensor | None = None
        self.words_share = 1.0

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives the layer's output, edited where the step says so."""
        self.seen = True
        origin = source_of(self.origin, query, key, mask)
        if self.words is None and self.step is None and self.buffer is not None:
            return super().attend(query, key, value, mask, scale, compute)
        if self.buffer is not None or self.words is not None:
            span = self.rows[0]
            part = mask if mask is None or len(mask) == 1 else mask[span]
            probs = kept_probs(query[span], key[span], part, scale, slice(None))
            taken = None if origin is None else kept_probs(*origin, None, scale, slice(None))
            self.write_all(self.edited(probs, taken))
        if self.step is None:
            return compute(query, key, value, mask)
        return edited_cross_attention(query, key, value, mask, self.step, compute, origin, scale)

    def edited(self, probs: Tensor, origin: Tensor | None = None) -> Tensor:
        """Gives probabilities of the conditional rows as they are in effect.

        Args:
            probs: float32 (rows, heads, queries, tokens).
            origin: the source's, where it isn't among them.
        """
        step = self.step
        if step is None:
            return probs
        first = self.rows[0].start
        taken = (
            probs.index_select(0, step.rows.sources - first)
            if origin is None
            else origin.index_select(0, step.rows.sources)
        )
        if step.mix is not None:
            taken = taken @ step.mix[:, None].to(taken.dtype)
        if step.owns:
            own = probs.index_select(0, step.rows.edited - first)
            taken = taken + own * step.own[:, None, None]
        return probs.index_copy(0, step.rows.edited - first, taken)

    def write_all(self, probs: Tensor) -> None:
        """Writes (rows, heads, queries, tokens) where they are kept."""
        if self.words is not None:
            heat = probs.mean(1).transpose(-1, -2)  # (rows, tokens, queries)
            self.words.add_(heat.unflatten(-1, self.words.shape[-2:]), alpha=self.words_share)
        if self.buffer is not None:
            self.write(probs[..., self.tokens])

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives an explicit processor's probabilities (batch x heads, queries, tokens), edited."""
        self.seen = True
        _refuse_kept(self.origin, self.name)
        probs = compute(query, key, mask)
        whole = probs.unflatten(0, (-1, self.heads))  # (batch, heads, queries, tokens)
        edited = self.edited(at_least_float32(whole[self.rows[0]]))
        if self.buffer is not None or self.words is not None:
            self.write_all(edited.detach().float())
        if self.step is None:
            return probs
        span = self.rows[0]
        parts = [whole[: span.start], edited.to(probs.dtype), whole[span.stop :]]
        return torch.cat(parts).flatten(0, 1)


class SelfEditing(LayerHandler):
    """Has some rows attend as their source does in one self-attention layer.

    No queries x queries matrix is made beyond what the model's own call makes.

    Attributes:
        follow: the rows that follow their source; None where none does.
        origin: what is kept of the source, or was; None where it is in the batch.
    """

    def __init__(self, name: str, heads: int) -> None:
        super().__init__(name, heads)
        self.follow: Rows | None = None
        self.origin: Origin | None = None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        compute: Compute,
    ) -> Tensor:
        """Gives SDPA(q_src, k_src, v) for the rows that follow, the model's own for the rest."""
        self.seen = True
        origin = source_of(self.origin, query, key, mask)
        if self.follow is None:
            return compute(query, key, value, mask)
        return followed(query, key, value, mask, self.follow, compute, origin)

    def scores(
        self,
        attn: Any,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        compute: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        """Gives an explicit processor's probabilities, the source's for rows that follow."""
        self.seen = True
        _refuse_kept(self.origin, self.name)
        probs = compute(query, key, mask)
        if self.follow is None:
            return probs
        whole: Tensor = probs.unflatten(0, (-1, self.heads))  # (batch, heads, queries, queries)
        taken = whole.index_select(0, self.follow.sources)
        return whole.index_copy(0, self.follow.edited, taken).flatten(0, 1)


def source_of(
    origin: Origin | None, query: Tensor, key: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Keeps the source's queries and keys of a call, or gives those that were kept."""
    if origin is None:
        return None
    if mask is not None:
        raise RuntimeError("a source can't be kept where attention is masked")
    if origin.rows is not None:
        origin.keep(query, key)
        return None
    return origin.read(query)


def _refuse_kept(origin: Origin | None, name: str) -> None:
    if origin is not None:
        raise RuntimeError(
            f"layer {name} writes its probabilities out; a source can be kept only where it "
            "doesn't: call pipe.unet.set_default_attn_processor() first"
        )
