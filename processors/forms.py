"""Prompt-to-prompt inside the attention call (Hertz et al. 2022, section 3), in two forms.

Everything that an edit does to probabilities is linear in them, so nothing has to be materialised:

    A · mix · V + B · own · V  =  SDPA(q_src, k_src, mix · V) + SDPA(q, k, own · V)

with A the source's probabilities, B the edited row's own, V its values, and ``mix`` and ``own`` as
``EditPlan.cross`` has them. Cross-attention of few queries is faster with explicit probabilities,
and takes that form. Rows of the batch that aren't edited in a step go through the model's own call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall

QueryKey = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EditedRows:
    """Rows of the batch that are edited, and for each the source's row of the same image.

    Attributes:
        edited: the edited rows, sibling after sibling.
        sources: their sources', counted in the batch, or in what was kept of an earlier run.
        span: the source's rows, of which ``sources`` names each once for every sibling.
        bounds: the batch from the first edited row to the last; some between may not be edited.
        first: the first edited row, where all that follow are edited; None where others do.
    """

    edited: Tensor
    sources: Tensor
    span: slice
    bounds: slice
    first: int | None = None

    @classmethod
    def of(
        cls,
        siblings: list[int],
        images: int,
        start: int,
        device: torch.device,
        *,
        kept: bool = False,
        batch: int | None = None,
    ) -> EditedRows:
        """Return the rows of some siblings.

        Args:
            siblings: which, from 0.
            images: images of each prompt; the batch is prompt-major, the source's come first.
            start: where the conditional rows begin.
            device: of the batch.
            kept: whether the source isn't in the batch, but was kept of an earlier run.
            batch: how many rows there are.
        """
        first, source = (start, 0) if kept else (start + images, start)
        edited = [first + j * images + i for j in siblings for i in range(images)]
        sources = [source + i for _ in siblings for i in range(images)]
        last = edited == list(range(edited[0], batch or 0))
        return cls(
            torch.tensor(edited, device=device),
            torch.tensor(sources, device=device),
            slice(source, source + images),
            slice(min(edited), max(edited) + 1),
            edited[0] if last else None,
        )

    def taken(self, tensor: Tensor) -> Tensor:
        """Return the sources' rows of (rows, ...), without copying them where that can be."""
        return self.spread(tensor[self.span])

    def spread(self, source: Tensor) -> Tensor:
        """Return the source's (images, ...) once for each edited row."""
        if len(source) == len(self.edited):
            return source
        if len(source) == 1:
            return source.expand(len(self.edited), *source.shape[1:])
        return source.index_select(0, self.sources - self.span.start)

    def chosen(self, tensor: Tensor) -> Tensor:
        """Return the edited rows of (rows, ...)."""
        if self.first is None:
            return tensor.index_select(0, self.edited)
        return tensor[self.first :]

    def joined(self, tensor: Tensor, edited: Tensor) -> Tensor:
        """Return (rows, ...) with its edited rows exchanged."""
        if self.first is None:
            return tensor.index_copy(0, self.edited, edited)
        return torch.cat([tensor[: self.first], edited])


@dataclass(frozen=True)
class CrossStep:
    """What a step does to cross-attention, shared by all layers.

    Attributes:
        rows: the rows edited in this step.
        mix: what each takes from the source's probabilities, (rows, source tokens, tokens); None
            where each token takes all of its own position's.
        own: what each takes from its own, (rows, tokens).
        owns: whether any takes anything from its own.
    """

    rows: EditedRows
    mix: Tensor | None
    own: Tensor
    owns: bool


def prefers_probabilities(query: Tensor) -> bool:
    """Return whether explicit probabilities are faster than values for a call.

    On the CPU they are where there are fewer queries than twice a head's channels, in float32 and
    in bfloat16 (``python -m benchmarks.attention_forms``). On CUDA, where each operation is a
    launch, the form of fewer operations is taken.
    """
    return query.device.type == "cpu" and query.shape[2] < 2 * query.shape[3]


def on_values(call: AttentionCall, step: CrossStep, source: QueryKey | None = None) -> Tensor:
    """Return the edited output with the edit moved from the probabilities to the values.

    One call of the model's own where rows take all of their attention from the source, and a
    second one, for the edited rows alone, where they keep some of theirs.

    Args:
        call: the layer's, unedited.
        step: what to do.
        source: the source's queries and keys, where it isn't in the batch.

    Returns:
        (batch, heads, queries, channels)
    """
    rows, value = step.rows, call.value
    if step.mix is None:
        return followed(call, rows, source)
    own_value = rows.chosen(value)  # (rows, heads, tokens, channels)
    mixed = step.mix.to(value.dtype)[:, None] @ own_value  # (rows, heads, source tokens, channels)
    if not step.owns:
        return followed(call, rows, source, mixed)
    kept = own_value * step.own.to(value.dtype)[:, None, :, None]
    out = call.attend(rows.joined(value, kept))
    taken = _following(call, rows, source, mixed)
    if torch.is_grad_enabled():
        return out.index_add(0, rows.edited, taken)
    return out.index_add_(0, rows.edited, taken)  # ours alone, so that nothing is copied


def on_probabilities(call: AttentionCall, step: CrossStep, edited: Tensor) -> Tensor:
    """Return the edited output by the edited rows' probabilities.

    Args:
        call: the layer's, unedited.
        step: what to do.
        edited: ``edited_probabilities``, float32 (edited rows, heads, queries, tokens).

    Returns:
        (batch, heads, queries, channels)
    """
    result = edited.to(call.value.dtype) @ step.rows.chosen(call.value)
    return _beside(result, call, step.rows)


def edited_probabilities(step: CrossStep, taken: Tensor, own: Tensor | None) -> Tensor:
    """Return the edited rows' probabilities as they are in effect.

    Args:
        step: what to do.
        taken: the source's, float32 (images, heads, queries, source tokens).
        own: the edited rows' own; None where they keep nothing of them.

    Returns:
        float32 (edited rows, heads, queries, tokens)
    """
    probs = step.rows.spread(taken)
    if step.mix is not None:
        probs = probs @ step.mix[:, None].to(probs.dtype)
    return probs if own is None else probs + own * step.own[:, None, None]


def followed(
    call: AttentionCall,
    rows: EditedRows,
    source: QueryKey | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Return the model's own call with some rows attending as their source does.

    That is SDPA(q_src, k_src, v) for these rows, of their own values or of those given.
    """
    values = rows.chosen(call.value) if values is None else values
    return _beside(_following(call, rows, source, values), call, rows)


def _following(
    call: AttentionCall, rows: EditedRows, source: QueryKey | None, values: Tensor
) -> Tensor:
    query, key = (rows.taken(t) for t in source or (call.query, call.key))
    return call.own(query, key, values, _of_sources(call, rows))  # type: ignore[no-any-return]


def _beside(result: Tensor, call: AttentionCall, rows: EditedRows) -> Tensor:
    """Return the whole batch: the edited rows' result, and the model's own call for the others."""
    if rows.first is None:
        return call.attend(call.value).index_copy(0, rows.edited, result)
    before = slice(0, rows.first)
    query, key, value = (t[before] for t in (call.query, call.key, call.value))
    return torch.cat([call.own(query, key, value, call.mask_of(before)), result])


def _of_sources(call: AttentionCall, rows: EditedRows) -> Tensor | None:
    if call.mask is None or call.mask.ndim < 4 or len(call.mask) == 1:
        return call.mask
    return rows.taken(call.mask)
