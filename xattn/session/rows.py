"""The rows of a denoiser's batch that follow the prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.models.family import DenoiserCall
from xattn.session.sampling import Asked

# The blocks of a guided batch to search for the conditional rows, in this order: most pipelines
# have [negative, positive] and PAG [negative, positive, positive]; Lumina and InstructPix2Pix have
# the positive first.
_BLOCKS = (1, 0, 2)


def conditional_block(states: Tensor, embeds: Tensor) -> slice | None:
    """Return the conditional rows of a denoiser call, found by comparing embeddings.

    If the prompt and the negative prompt are the same, the usual layout decides. Where texts of
    two lengths share a batch, zeros fill up the shorter ones.

    Returns:
        Rows of the batch, or None if no block equals the embeddings.
    """
    rows, length = len(embeds), embeds.shape[1]
    if len(states) % rows or states.shape[2:] != embeds.shape[2:] or states.shape[1] < length:
        return None
    embeds = embeds.to(states)
    for block in _BLOCKS:
        span = slice(block * rows, (block + 1) * rows)
        if span.stop > len(states) or not torch.equal(states[span, :length], embeds):
            continue
        if not states[span, length:].any():
            return span
    return None


def usual_block(batch: int, rows: int) -> slice:
    """Return the conditional rows of a custom loop: all, or the second half.

    Raises:
        RuntimeError: the batch is neither as large as the requested rows nor twice as large.
    """
    if batch not in (rows, 2 * rows):
        raise RuntimeError(
            f"the denoiser was called with {batch} rows for {rows} images: cannot tell which "
            "follow the prompts; pass rows= or embeds="
        )
    return slice(batch - rows, batch)


@dataclass(frozen=True)
class _Known:
    """Rows found in a call, and the text they were found in.

    Keep the text itself instead of its address: freed memory is reused.

    Attributes:
        states: the call's text.
        version: torch's count of writes into it; None if torch does not count.
        batch: number of rows of the call.
        rows: the rows found.
    """

    states: Tensor | None
    version: int | None
    batch: int
    rows: tuple[slice, ...] | None

    @classmethod
    def of(cls, call: DenoiserCall, rows: tuple[slice, ...] | None) -> _Known:
        """Return the rows found in a call, with its text."""
        return cls(call.states, _version(call.states), call.rows, rows)

    def is_of(self, call: DenoiserCall) -> bool:
        """Return whether a call has this very text, unchanged; False if writes are not counted."""
        if call.states is not self.states or call.rows != self.batch:
            return False
        if call.states is None:
            return True
        return not call.states.is_inference() and _version(call.states) == self.version


def _version(states: Tensor | None) -> int | None:
    return None if states is None or states.is_inference() else states._version


class RowFinder:
    """Finder of the conditional rows in each call of a run; it looks once per text.

    Args:
        asked: prompts and embeddings.
        rows: the rows given by the user, if any.
        size: called with a batch's number of rows, to refuse an impossible batch.
        check: called with a call and its rows, to the same end.
    """

    def __init__(
        self,
        asked: Asked,
        rows: slice | None = None,
        size: Callable[[int], None] | None = None,
        check: Callable[[DenoiserCall, slice], None] | None = None,
    ) -> None:
        self.asked = asked
        self.rows = rows
        self.size = size
        self.check = check
        self._known: dict[str, _Known] = {}

    def find(self, call: DenoiserCall) -> tuple[slice, ...] | None:
        """Return spans of the batch, positive prompts first; None for a foreign text.

        Raises:
            RuntimeError: the batch has neither as many rows as there are images nor twice as many.
        """
        known = self._known.get(call.component)
        if known is None or not known.is_of(call):
            if self.size is not None:
                self.size(call.rows)
            found = self._look(call.states, call.rows)
            if self.check is not None and found is not None:
                self.check(call, found[0])
            known = self._known[call.component] = _Known.of(call, found)
        return known.rows

    def _look(self, states: Tensor | None, batch: int) -> tuple[slice, ...] | None:
        if self.rows is not None:
            start, stop, _ = self.rows.indices(batch)
            return (slice(start, stop),)
        embeds, wanted = self.asked.embeds, len(self.asked.prompt_of)
        if embeds is None:
            return (usual_block(batch, wanted),)
        images = len(embeds)
        if states is None:
            return None
        if self.asked.perturbed:  # the copies look like the rows themselves
            batch -= images
            states = states[:batch]
        span = conditional_block(states, embeds)
        if span is None:
            return None
        if wanted == images or batch == images:
            return (span,)
        return (span, slice(0, images) if span.start else slice(images, 2 * images))

    def is_negative(self, call: DenoiserCall) -> bool:
        """Return whether a call follows only the negative prompts: guidance's own pass."""
        negative = self.asked.negative_embeds
        if negative is None or call.states is None:
            return False
        return len(call.states) == len(negative) and (
            conditional_block(call.states, negative) is not None
        )


@dataclass(frozen=True)
class PromptMajor:
    """The batch layout required to edit a custom loop: all images of each prompt in turn.

    Attributes:
        asked: the loop's prompts.
        texts: the prompts as text.
        rows: the rows following the prompts, if given by the user.
    """

    asked: Asked
    texts: list[str]
    rows: slice | None

    @property
    def images(self) -> int:
        """Number of images per prompt."""
        return len(self.asked.prompt_of) // len(self.texts)

    def check_size(self, batch: int) -> None:
        """Raise ValueError if a batch's rows do not match the prompts' images."""
        wanted, prompts = len(self.asked.prompt_of), len(self.texts)
        much = f"{prompts} prompts x images={self.images}"
        if self.rows is not None:
            found = len(range(*self.rows.indices(batch)))
            if found != wanted:
                raise ValueError(
                    f"rows={self.rows} selects {found} of the UNet's {batch} rows, but "
                    f"{wanted} are needed ({much}): correct rows= or images="
                )
        elif self.asked.embeds is None and batch not in (wanted, 2 * wanted):
            raise ValueError(
                f"the UNet was called with {batch} rows; {much} are {wanted}, or {2 * wanted} "
                "with guidance: set images= to the number of images per prompt"
            )

    def check(self, call: DenoiserCall, span: slice) -> None:
        """Raise ValueError if rows carry other texts than their prompts'."""
        states = call.states
        if states is None or self.rows is not None:
            return
        self._check_order(states[span])
        start, known = span.start, self.asked.embeds is not None
        if start and not known and torch.equal(states[:start], states[start:][:start]):
            raise ValueError(
                f"both halves of the UNet's {call.rows} rows have the same embeddings; with "
                f"images={self.images} the first should be guidance's: set images= to the "
                "number of images per prompt, or rows= to the rows following the prompts"
            )

    def _check_order(self, states: Tensor) -> None:
        firsts: dict[tuple[int, ...], Tensor] = {}
        for row, number in enumerate(self.asked.prompt_of):
            prompt = self.asked.prompts[number]
            ids = tuple(token.id for token in prompt.tokens)
            first = firsts.setdefault(ids, states[row])
            fits = _alike(first, states[row])
            if not fits or any(torch.equal(o, first) for i, o in firsts.items() if i != ids):
                raise ValueError(
                    f"row {row} of the conditional rows should follow {prompt.text!r}, but its "
                    f"embeddings differ: give each prompt of session.prompts images={self.images} "
                    "rows, one prompt after another, or correct images= or rows="
                )


def _alike(one: Tensor, two: Tensor) -> bool:
    """Return whether two embeddings are of one text, up to rounding."""
    if torch.equal(one, two):
        return True
    one, two = one.float(), two.float()
    return bool((one - two).abs().max() <= 0.02 * one.abs().max())
