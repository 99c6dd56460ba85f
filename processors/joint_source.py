"""A source's part of a joint attention call, and the layout that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Place
from xattn.processors.forms import EditedRows
from xattn.processors.probabilities import Tokens, log_sums, picked


@dataclass(frozen=True)
class JointSource:
    """A source's part of a joint call.

    Attributes:
        query: the image's queries, (images, heads, queries, channels).
        text: the text's keys, (images, heads, tokens, channels).
        image: the image's keys.
        sums: logarithms of the softmax's sums, float32 (images, heads, queries).
        mask: the call's mask for the text's keys, or None.
    """

    query: Tensor
    text: Tensor
    image: Tensor
    sums: Tensor
    mask: Tensor | None = None

    @classmethod
    def of(cls, call: AttentionCall, rows: slice, sums: Tensor | None = None) -> JointSource:
        """Read some rows of a call.

        Args:
            call: the model's own call.
            rows: the source's rows, whose text and image stand at the same places.
            sums: logarithms of the softmax's sums of all queries, where they are known.
        """
        place, mask = place_of(call, rows.start), call.mask_of(rows)
        query, key = call.query[rows], call.key[rows]
        if sums is None:
            sums = log_sums(
                query[:, :, place.queries], key, cut(mask, place.queries, None), call.scale
            )
        else:
            sums = sums[:, :, place.queries]
        return cls(
            query[:, :, place.queries],
            picked(key, place.text, 2),
            key[:, :, place.image],
            sums,
            cut(mask, place.queries, place.text),
        )

    def to(self, like: Tensor) -> JointSource:
        """Return it on a call's device."""
        query, text, image = (t.to(like) for t in (self.query, self.text, self.image))
        return JointSource(query, text, image, self.sums.to(like.device))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What has to be kept of it."""
        return self.query, self.text, self.image, self.sums


class KeptJoints:
    """The source's part in one layer, kept from an earlier run.

    Attributes:
        parts: for each denoiser call the tensors of a ``JointSource``.
        number: index of the current call.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, ...]]) -> None:
        self.parts = parts
        self.number = 0

    def read(self, call: AttentionCall) -> JointSource:
        """Return the part of the current call.

        Raises:
            RuntimeError: the call has a mask.
        """
        refuse_masked(call)
        return JointSource(*self.parts[self.number]).to(call.query)


def refuse_masked(call: AttentionCall) -> None:
    """Raise RuntimeError if a source cannot be kept or reused in a joint call."""
    if call.mask is not None:
        raise RuntimeError("a source cannot be kept with masked attention")


def cut(mask: Tensor | None, queries: slice | None, keys: Tokens | None) -> Tensor | None:
    """Return a mask's part for some queries and keys; an axis of length 1 stands for all."""
    if mask is None:
        return None
    if queries is not None and mask.shape[-2] > 1:
        mask = mask[..., queries, :]
    return mask if keys is None or mask.shape[-1] == 1 else picked(mask, keys, -1)


def place_of(call: AttentionCall, row: int) -> Place:
    """Return where text and image stand in a row.

    Raises:
        RuntimeError: the call is not a joint one.
    """
    places = call.places
    if places is None:
        raise RuntimeError("a joint call without places of text and image cannot be edited")
    return places[row]


def shared_place(call: AttentionCall, rows: EditedRows) -> Place:
    """Return the place that the edited rows share with their sources.

    Raises:
        RuntimeError: text and image stand at different places in them, or not all keys are theirs.
    """
    place = place_of(call, rows.bounds.start)
    others = (call.places or ())[min(rows.span.start, rows.bounds.start) : rows.bounds.stop]
    if any(other.key != place.key for other in others):
        raise RuntimeError(
            "the model gives prompts of different lengths places of their own; edits need "
            "prompts of one length"
        )
    known = _count(place.text) + _count(place.image)
    if known != call.key.shape[2]:
        raise RuntimeError(
            f"{known} of the layer's {call.key.shape[2]} keys are the text's or the drawn image's, "
            "and edits need all of them to be: draw from a prompt without pictures"
        )
    return place


def _count(tokens: Tokens) -> int:
    return tokens.stop - tokens.start if isinstance(tokens, slice) else len(tokens)


def followed(call: AttentionCall, rows: EditedRows, source: JointSource) -> AttentionCall:
    """Return a call whose following rows have their source's image queries and image keys."""
    place = shared_place(call, rows)
    query, key = rows.chosen(call.query), rows.chosen(call.key)
    query = _exchanged(query, place.queries, rows.spread(source.query))
    key = _exchanged(key, place.image, rows.spread(source.image))
    return AttentionCall(
        rows.joined(call.query, query),
        rows.joined(call.key, key),
        call.value,
        call.mask,
        call.scale,
        call.own,
        call.locate,
    )


def _exchanged(tensor: Tensor, span: slice, other: Tensor) -> Tensor:
    return torch.cat([tensor[:, :, : span.start], other, tensor[:, :, span.stop :]], 2)
