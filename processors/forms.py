"""Prompt-to-prompt inside the attention call (Hertz et al. 2022, section 3), in two forms.

Edits are linear in the probabilities, so nothing has to be materialised:

    A · mix · V + B · own · V  =  SDPA(q_src, k_src, mix · V) + SDPA(q, k, own · V)

with A the source's probabilities, B the edited row's own, V its values, and ``mix`` and ``own``
from ``EditPlan.cross``. Cross-attention with few queries is faster with explicit probabilities,
and uses them. Rows of the batch not edited in a step use the model's own call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall

QueryKey = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class EditedRows:
    """Edited rows of the batch, and for each the source's row of the same image.

    Attributes:
        edited: the edited rows, sibling after sibling.
        sources: their source rows, counted in the batch or in the kept source.
        span: the source's rows; ``sources`` names each once per sibling.
        bounds: the batch from the first to the last edited row; some between may be unedited.
        first: the first edited row if all following rows are edited; otherwise None.
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
            siblings: their indices, from 0.
            images: images per prompt; the batch is prompt-major, source first.
            start: the first conditional row.
            device: device of the batch.
            kept: whether the source comes from an earlier run and is not in the batch.
            batch: number of rows.
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
        """Return the source rows of (rows, ...), without a copy if possible."""
        return self.spread(tensor[self.span])

    def spread(self, source: Tensor) -> Tensor:
        """Return the source's (images, ...) repeated for each edited row."""
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
        """Return (rows, ...) with its edited rows replaced."""
        if self.first is None:
            return tensor.index_copy(0, self.edited, edited)
        return torch.cat([tensor[: self.first], edited])


@dataclass(frozen=True)
class CrossStep:
    """A step's edit of cross-attention, shared by all layers.

    Attributes:
        rows: the rows edited at this step.
        mix: weights of the source's probabilities, (rows, source tokens, tokens); None if each
            token takes all of its own position's.
        own: weights of the row's own probabilities, (rows, tokens).
        owns: whether any of ``own`` is nonzero.
    """

    rows: EditedRows
    mix: Tensor | None
    own: Tensor
    owns: bool


def prefers_probabilities(query: Tensor) -> bool:
    """Return whether explicit probabilities are faster than values for a call.

    On the CPU they are faster for fewer queries than twice a head's channels, in float32 and
    bfloat16 (``python -m benchmarks.attention_forms``). On CUDA, where every operation is a
    launch, use the form with fewer operations.
    """
    return query.device.type == "cpu" and query.shape[2] < 2 * query.shape[3]


def on_values(call: AttentionCall, step: CrossStep, source: QueryKey | None = None) -> Tensor:
    """Return the edited output, with the edit moved from the probabilities to the values.

    One of the model's own calls suffices if rows take all attention from the source; a second,
    only for the edited rows, is needed if they keep some of their own.

    Args:
        call: the layer's unedited call.
        step: the step's edit.
        source: the source's queries and keys, if it is not in the batch.

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
    return out.index_add_(0, rows.edited, taken)  # a tensor of our own: no copy needed


def on_probabilities(call: AttentionCall, step: CrossStep, edited: Tensor) -> Tensor:
    """Return the edited output computed from explicit probabilities.

    Args:
        call: the layer's unedited call.
        step: the step's edit.
        edited: ``edited_probabilities``, float32 (edited rows, heads, queries, tokens).

    Returns:
        (batch, heads, queries, channels)
    """
    result = edited.to(call.value.dtype) @ step.rows.chosen(call.value)
    return _beside(result, call, step.rows)


def edited_probabilities(step: CrossStep, taken: Tensor, own: Tensor | None) -> Tensor:
    """Return the edited rows' probabilities in effect.

    Args:
        step: the step's edit.
        taken: the source's, float32 (images, heads, queries, source tokens).
        own: the edited rows' own; None if they keep nothing of them.

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

    For these rows: SDPA(q_src, k_src, v), with their own values or the given ones.
    """
    values = rows.chosen(call.value) if values is None else values
    return _beside(_following(call, rows, source, values), call, rows)


def _following(
    call: AttentionCall, rows: EditedRows, source: QueryKey | None, values: Tensor
) -> Tensor:
    query, key = (rows.taken(t) for t in source or (call.query, call.key))
    return call.own(query, key, values, _of_sources(call, rows))  # type: ignore[no-any-return]


def _beside(result: Tensor, call: AttentionCall, rows: EditedRows) -> Tensor:
    """Return the whole batch: the edited rows' result, and the model's own call for the rest."""
    if rows.first is None:
        return call.attend(call.value).index_copy(0, rows.edited, result)
    before = slice(0, rows.first)
    query, key, value = (t[before] for t in (call.query, call.key, call.value))
    return torch.cat([call.own(query, key, value, call.mask_of(before)), result])


def _of_sources(call: AttentionCall, rows: EditedRows) -> Tensor | None:
    if call.mask is None or call.mask.ndim < 4 or len(call.mask) == 1:
        return call.mask
    return rows.taken(call.mask)
