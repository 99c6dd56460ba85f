"""Prompt-to-prompt in joint attention, where text and image are keys of one softmax.

For the image's queries of an edited row, with A the source's probabilities, B the row's own, V its
values, the token mapping M, the schedule c and the weights e (text columns t, image columns i):

    E_t = A_t M c + B_t (1 - c)        the text's columns
    E_i = (1 - sum E_t) B_i / sum B_i  the image's share out what is left
    O   = E_t e V_t + E_i V_i

Text columns alone are computed, a chunk of queries at a time, from the logarithms of the softmax's
sums; ``B_i / sum B_i V_i`` is the model's own fused call on the image's keys. No matrix of
(text + image) x (text + image) is made.

The layout follows in the same call by its inputs: the row attends with its source's image queries
and image keys, its own text keys and all of its own values (Shin et al. 2025, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall
from xattn.processors.forms import EditedRows
from xattn.processors.joint_source import JointSource, cut, shared_place
from xattn.processors.probabilities import (
    Tokens,
    fused_attention,
    kept_maps,
    log_sums,
    picked,
)

_CHUNK = 2**24  # probabilities of text columns at a time: 64 MB


@dataclass(frozen=True)
class JointStep:
    """A step's edit of joint attention, shared by all layers.

    Attributes:
        rows: the rows edited at this step.
        mapping: M c, (rows, source tokens, tokens).
        own: 1 - c, (rows, tokens).
        weights: e, (rows, tokens).
        takes: whether any token follows the source.
        keeps: whether any token keeps its own column.
    """

    rows: EditedRows
    mapping: Tensor
    own: Tensor
    weights: Tensor
    takes: bool
    keeps: bool


class JointCall(AttentionCall):
    """A layer's joint attention with the text's columns of some rows edited.

    Attributes:
        before: the call before the edit, perhaps with its layout following the source.
        step: the step's edit.
        given: the source's part, if it is not in the batch.
    """

    def __init__(
        self, before: AttentionCall, step: JointStep, given: JointSource | None = None
    ) -> None:
        super().__init__(
            before.query,
            before.key,
            before.value,
            before.mask,
            before.scale,
            before.own,
            before.locate,
        )
        self.before = before
        self.step = step
        self.given = given
        self.place = shared_place(before, step.rows)
        self._chosen: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None
        self._rest: AttentionCall | None = None  # rows that keep the model's own call
        self._source: JointSource | None = None
        self._image: tuple[Tensor, Tensor] | None = None
        self._mass: Tensor | None = None  # of the text's columns before weights

    # -- parts -------------------------------------------------------------------------------------

    @property
    def rest(self) -> AttentionCall:
        """The call's unedited rows: those before the first edited one, or the whole batch."""
        if self._rest is None:
            before, rows = self.before, slice(0, self.step.rows.first)
            query, key, value = (t[rows] for t in (before.query, before.key, before.value))
            mask = before.mask_of(rows)
            self._rest = AttentionCall(
                query, key, value, mask, before.scale, before.own, before.locate
            )
        return self._rest

    def source(self) -> JointSource:
        """Return the source's part, from the batch or from an earlier run."""
        if self._source is None:
            span = self.step.rows.span
            self._source = self.given or JointSource.of(self.rest, span, self.rest.sums(span))
        return self._source

    def chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the edited rows' queries, keys, values and mask."""
        if self._chosen is None:
            rows, before = self.step.rows, self.before
            mask = before.mask
            if mask is not None and mask.ndim == 4 and len(mask) > 1:
                mask = rows.chosen(mask)
            query, key, value = map(rows.chosen, (before.query, before.key, before.value))
            self._chosen = query, key, value, mask
        return self._chosen

    def image(self) -> tuple[Tensor, Tensor]:
        """Return what the image's queries read from the image's keys alone.

        Returns:
            (rows, heads, queries, channels), and float32 (rows, heads, queries): the logarithms of
            the sums over the image's keys.
        """
        if self._image is None:
            place, (query, key, value, mask) = self.place, self.chosen()
            query, key = query[:, :, place.queries], key[:, :, place.image]
            mask = cut(mask, place.queries, place.image)
            self._image = attended(query, key, value[:, :, place.image], mask, self.before)
        return self._image

    def _own_sums(self) -> Tensor:
        """Return the logarithms of the edited rows' own sums, over all keys."""
        place, (query, key, _, mask) = self.place, self.chosen()
        text = log_sums(
            query[:, :, place.queries],
            picked(key, place.text, 2),
            cut(mask, place.queries, place.text),
            self.scale,
        )
        return torch.logaddexp(text, self.image()[1])

    # -- the output --------------------------------------------------------------------------------

    def output(self) -> Tensor:
        """Return the layer's output, with the edited rows' image queries replaced."""
        if self._output is None:
            rows, own = self.step.rows, self.rest.output()
            edited = self._edited().to(own.dtype)
            if rows.first is None:
                self._output = own.index_copy(0, rows.edited, edited)
            else:
                self._output = torch.cat([own, edited])
        return self._output

    def _edited(self) -> Tensor:
        query, key, value, mask = self.chosen()
        a, b = self.place.queries.start, self.place.queries.stop
        others = torch.cat([query[:, :, :a], query[:, :, b:]], 2)  # the text's, and references'
        if not others.shape[2]:
            return self._read(value)
        if mask is not None and mask.shape[-2] > 1:
            mask = torch.cat([mask[..., :a, :], mask[..., b:, :]], -2)
        outside = self.before.own(others, key, value, mask)
        return torch.cat([outside[:, :, :a], self._read(value), outside[:, :, a:]], 2)

    def _read(self, value: Tensor) -> Tensor:
        """Return what the image's queries read, (rows, heads, queries, channels)."""
        step = self.step
        text = picked(value, self.place.text, 2).float()
        weighted = text * step.weights[:, None, :, None]
        taken = _with_mass(step.mapping[:, None] @ weighted, step.mapping.sum(-1))
        kept = _with_mass(weighted * step.own[:, None, :, None], step.own)
        parts = []
        for a, b in self._columns():
            part = None if a is None else a.transpose(-1, -2) @ taken
            if b is not None:
                more = b.transpose(-1, -2) @ kept
                part = more if part is None else part + more
            parts.append(part)
        both = torch.cat([part for part in parts if part is not None], 2)
        words, mass = both[..., :-1], both[..., -1:]  # (rows, heads, queries, channels or 1)
        self._mass = mass
        left = (1 - mass).clamp(min=0)
        read = words / mass.clamp(min=1) + left * self.image()[0].float()
        return read.to(value.dtype)

    def _columns(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yield A's and B's text columns, (rows, heads, tokens, some queries); None if unused."""
        step, place, source = self.step, self.place, self.source()
        query, key, _, mask = self.chosen()
        query, key = query[:, :, place.queries], picked(key, place.text, 2)
        mask = cut(mask, place.queries, place.text)
        sums = self._own_sums() if step.keeps else None
        rows, heads, queries = query.shape[:3]
        size = max(1, _CHUNK // (rows * heads * key.shape[2]))
        for span in (slice(n, n + size) for n in range(0, queries, size)):
            taken = kept = None
            if step.takes:
                part, own = source.query[:, :, span], source.sums[:, :, span]
                masked = cut(source.mask, span, None)
                taken = step.rows.spread(
                    kept_maps(part, source.text, self.scale, own, slice(None), masked)
                )
            if sums is not None:
                part, own = query[:, :, span], sums[:, :, span]
                kept = kept_maps(part, key, self.scale, own, slice(None), cut(mask, span, None))
            yield taken, kept

    # -- what is in effect -------------------------------------------------------------------------

    def maps(self, rows: slice, tokens: Tokens) -> Tensor:
        """Return the image's probabilities in effect, (rows, heads, tokens, queries)."""
        self.prepare()
        edited, start = self.step.rows, rows.start or 0
        words = self._words(tokens)
        if edited.first is None:
            own = self.rest.maps(rows, tokens)
            return own.index_copy(0, edited.edited - start, words)
        if start >= edited.first:
            return words[start - edited.first :]
        own = self.rest.maps(slice(start, edited.first), tokens)
        return torch.cat([own, words])

    def _words(self, tokens: Tokens) -> Tensor:
        """Return the edited rows' text columns, weighted, (rows, heads, tokens, queries)."""
        step = self.step
        mapping = picked(step.mapping, tokens, 2).transpose(1, 2)[:, None]  # (rows, 1, tokens, s)
        own, weights = (picked(t, tokens, 1)[:, None, :, None] for t in (step.own, step.weights))
        parts = []
        for a, b in self._columns():
            part = None if a is None else mapping @ a
            if b is not None:
                more = picked(b, tokens, 2) * own
                part = more if part is None else part + more
            assert part is not None
            parts.append(part)
        assert self._mass is not None
        return torch.cat(parts, 3) / self._mass.clamp(min=1).transpose(-1, -2) * weights

    def probabilities(self, rows: slice) -> Tensor:
        """Return all probabilities in effect, written out, (rows, heads, queries, keys)."""
        self.prepare()
        assert self._mass is not None
        place, edited = self.place, self.step.rows
        own = self.before.probabilities(rows).clone()
        chosen = own.index_select(0, edited.edited - (rows.start or 0))
        image = chosen[:, :, place.queries, place.image]
        left = (1 - self._mass).clamp(min=0) / image.sum(-1, keepdim=True)
        chosen[:, :, place.queries, place.image] = image * left
        keys = torch.arange(chosen.shape[-1], device=own.device)
        words = self._words(slice(None)).transpose(-1, -2)
        chosen[:, :, place.queries] = chosen[:, :, place.queries].index_copy(
            -1, picked(keys, place.text, 0), words
        )
        return own.index_copy(0, edited.edited - (rows.start or 0), chosen)

    def affinity(self, rows: slice) -> Tensor:
        """Return the image's probabilities in effect for the image, (rows, queries, queries)."""
        place = self.place
        return self.probabilities(rows)[:, :, place.queries, place.own].mean(1)


def attended(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Tensor, Tensor]:
    """Return the model's own attention for other inputs, and its softmax's sums' logarithms."""
    fused = fused_attention(query, key, value, mask, call.own)
    if fused is not None and not torch.is_grad_enabled():
        return fused
    output = call.own(query, key, value, mask)
    return output, log_sums(query, key, mask, call.scale)


def _with_mass(values: Tensor, mass: Tensor) -> Tensor:
    """Return values with their tokens' mass as a further channel, (rows, heads, tokens, n + 1)."""
    mass = mass[:, None, :, None].expand(*values.shape[:3], 1)
    return torch.cat([values, mass.to(values.dtype)], -1)
