"""The two forms of an edited cross-attention call: on values, and on probabilities.

Everything that an edit does to probabilities is linear in them, so both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.processors.call import Compute
from xattn.processors.probabilities import softmax_probs


@dataclass(frozen=True)
class Rows:
    """Rows of the batch that are edited, and for each the source's row of the same image.

    Attributes:
        edited: the edited rows, sibling after sibling.
        sources: their sources', counted in the batch, or in what was kept of an earlier run.
        span: the source's rows, of which ``sources`` names each once for every sibling.
        first: the first edited row, where all that follow are edited; None where others do.
    """

    edited: Tensor
    sources: Tensor
    span: slice
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
    ) -> Rows:
        """Gives the rows of some siblings.

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
            edited[0] if last else None,
        )

    def taken(self, tensor: Tensor) -> Tensor:
        """Gives the sources' rows of (rows, ...), without copying them where that can be."""
        source = tensor[self.span]
        if len(source) == len(self.edited):
            return source
        if len(source) == 1:
            return source.expand(len(self.edited), *source.shape[1:])
        return tensor.index_select(0, self.sources)


class Origin:
    """The source's queries and keys in one layer, kept in one run and read in later ones.

    Attributes:
        calls: for each denoiser call the queries (images, heads, queries, channels) and keys.
        call: which call is under way.
        rows: where the source's rows are in the batch, while keeping; None while reading.
    """

    def __init__(self, calls: list[tuple[Tensor, Tensor]], rows: slice | None = None) -> None:
        self.calls = calls
        self.call = 0
        self.rows = rows

    def keep(self, query: Tensor, key: Tensor) -> None:
        """Keeps a call's."""
        assert self.rows is not None
        self.calls.append((query[self.rows].detach().clone(), key[self.rows].detach().clone()))

    def read(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the queries and keys of the call under way."""
        one, two = self.calls[self.call]
        return one.to(query), two.to(query)


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

    rows: Rows
    mix: Tensor | None
    own: Tensor
    owns: bool


def edited_cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    step: CrossStep,
    compute: Compute,
    origin: tuple[Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """Gives the layer's output with some rows edited, in the form that measures faster.

    Args:
        query: (batch, heads, queries, channels).
        key: (batch, heads, tokens, channels).
        value: (batch, heads, tokens, channels).
        mask: the call's own.
        step: what to do.
        compute: the model's own call.
        origin: the source's queries and keys, where it isn't in the batch.
        scale: the attention's.

    Returns:
        (batch, heads, queries, channels)
    """
    if prefers_probabilities(query):
        return on_probabilities(query, key, value, mask, step, compute, origin, scale)
    return on_values(query, key, value, mask, step, compute, origin)


def prefers_probabilities(query: Tensor) -> bool:
    """Tells whether explicit probabilities are faster than values for a call.

    On the CPU they are where there are fewer queries than twice a head's channels, in float32 and
    in bfloat16 (``python -m benchmarks.attention_forms``). On CUDA, where each operation is a
    launch, the form of fewer operations is taken.
    """
    return query.device.type == "cpu" and query.shape[2] < 2 * query.shape[3]


def on_values(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    step: CrossStep,
    compute: Compute,
    origin: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gives ``edited_cross_attention`` with the edit moved from the probabilities to the values.

    One call of the model's own where rows take all of their attention from the source, and a
    second one, for the edited rows alone, where they keep some of theirs.
    """
    rows = step.rows
    if step.mix is None:
        return followed(query, key, value, mask, rows, compute, origin)
    own_value = _edited(value, rows)  # (rows, heads, tokens, channels)
    mixed = step.mix.to(value.dtype)[:, None] @ own_value  # (rows, heads, source tokens, channels)
    if not step.owns:
        return followed(query, key, value, mask, rows, compute, origin, mixed)
    kept = own_value * step.own.to(value.dtype)[:, None, :, None]
    out = compute(query, key, _joined(value, kept, rows), mask)
    from_query, from_key = origin or (query, key)
    taken = compute(rows.taken(from_query), rows.taken(from_key), mixed, _of_sources(mask, rows))
    if torch.is_grad_enabled():
        return out.index_add(0, rows.edited, taken)
    return out.index_add_(0, rows.edited, taken)  # ours alone, so that nothing is copied


def on_probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    step: CrossStep,
    compute: Compute,
    origin: tuple[Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """Gives ``edited_cross_attention`` by a softmax in float32 or more of the rows that it takes.

    The rows that aren't edited go through the model's own call.
    """
    rows = step.rows
    from_query, from_key = (rows.taken(t) for t in origin or (query, key))
    probs = softmax_probs(from_query, from_key, _of_sources(mask, rows), scale)
    if step.mix is not None:
        probs = probs @ step.mix[:, None].to(probs.dtype)  # (rows, heads, queries, tokens)
    if step.owns:
        part = mask if mask is None or len(mask) == 1 else _edited(mask, rows)
        own = softmax_probs(_edited(query, rows), _edited(key, rows), part, scale)
        probs = probs + own * step.own[:, None, None]
    result = probs.to(value.dtype) @ _edited(value, rows)
    return _beside(result, query, key, value, mask, rows, compute)


def followed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Rows,
    compute: Compute,
    origin: tuple[Tensor, Tensor] | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """Gives the model's own call with some rows attending as their source does.

    That is SDPA(q_src, k_src, v) for these rows, of their own values or of those given.
    """
    from_query, from_key = (rows.taken(t) for t in origin or (query, key))
    values = _edited(value, rows) if values is None else values
    result = compute(from_query, from_key, values, _of_sources(mask, rows))
    return _beside(result, query, key, value, mask, rows, compute)


def _beside(
    result: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Rows,
    compute: Compute,
) -> Tensor:
    """Gives the whole batch: the edited rows' result, and the model's own call for the others."""
    if rows.first is None:
        return compute(query, key, value, mask).index_copy(0, rows.edited, result)
    query, key, value = (t[: rows.first] for t in (query, key, value))
    part = mask if mask is None or len(mask) == 1 else mask[: rows.first]
    return torch.cat([compute(query, key, value, part), result])


def _edited(tensor: Tensor, rows: Rows) -> Tensor:
    """Gives the edited rows of (rows, ...)."""
    if rows.first is None:
        return tensor.index_select(0, rows.edited)
    return tensor[rows.first :]


def _joined(tensor: Tensor, edited: Tensor, rows: Rows) -> Tensor:
    """Gives (rows, ...) with its edited rows exchanged."""
    if rows.first is None:
        return tensor.index_copy(0, rows.edited, edited)
    return torch.cat([tensor[: rows.first], edited])


def _of_sources(mask: Tensor | None, rows: Rows) -> Tensor | None:
    return mask if mask is None or len(mask) == 1 else rows.taken(mask)
