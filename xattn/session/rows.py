"""Which rows of a denoiser's batch follow the prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.models.family import DenoiserCall
from xattn.session.sampling import Asked

# The blocks of a guided batch in which the conditional rows are looked for, in this order: most
# pipelines have [negative, positive] and PAG [negative, positive, positive]; Lumina and
# InstructPix2Pix have the positive first.
_BLOCKS = (1, 0, 2)


def conditional_block(states: Tensor, embeds: Tensor) -> slice | None:
    """Return the rows of a denoiser call that follow the prompts, by comparing embeddings.

    Where the prompt and the negative prompt are the same, the usual layout decides.

    Returns:
        Rows of the batch, or None where no block of them equals the embeddings.
    """
    rows = len(embeds)
    if len(states) % rows or states.shape[1:] != embeds.shape[1:]:
        return None
    embeds = embeds.to(states)
    for block in _BLOCKS:
        span = slice(block * rows, (block + 1) * rows)
        if span.stop <= len(states) and torch.equal(states[span], embeds):
            return span
    return None


def usual_block(batch: int, rows: int) -> slice:
    """Return the rows that follow the prompts in a loop of one's own: all, or the second half.

    Raises:
        RuntimeError: the batch is neither as large as the rows asked for nor twice as large.
    """
    if batch not in (rows, 2 * rows):
        raise RuntimeError(
            f"the denoiser was called with {batch} rows for {rows} images: which of them follow "
            "the prompts can't be known; pass rows= or embeds="
        )
    return slice(batch - rows, batch)


@dataclass(frozen=True)
class _Known:
    """Rows that were found in a call, and the text that they were found in.

    The text itself is kept, and not its address: memory that is freed is used again.

    Attributes:
        states: the call's text.
        version: how often it had been written into; None where torch doesn't count.
        batch: rows of the call.
        rows: what was found.
    """

    states: Tensor | None
    version: int | None
    batch: int
    rows: tuple[slice, ...] | None

    @classmethod
    def of(cls, call: DenoiserCall, rows: tuple[slice, ...] | None) -> _Known:
        """Keep what was found in a call."""
        return cls(call.states, _version(call.states), call.rows, rows)

    def is_of(self, call: DenoiserCall) -> bool:
        """Return whether a call has this very text, unchanged; never where changes don't count."""
        if call.states is not self.states or call.rows != self.batch:
            return False
        if call.states is None:
            return True
        return not call.states.is_inference() and _version(call.states) == self.version


def _version(states: Tensor | None) -> int | None:
    return None if states is None or states.is_inference() else states._version


class RowFinder:
    """Finds the rows that follow the prompts in each call of a run, once for each text.

    Args:
        asked: prompts and embeddings.
        rows: which rows of the batch follow them, where the user says so.
        size: called with the number of a batch's rows, to refuse what can't be.
        check: called with a call and the rows found in it, to the same end.
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
        """Return spans of the batch, the positive prompts' first; None where the text isn't ours.

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
        span = None if states is None else conditional_block(states, embeds)
        if span is None:
            return None
        if wanted == images or batch == images:
            return (span,)
        return (span, slice(0, images) if span.start else slice(images, 2 * images))

    def is_negative(self, call: DenoiserCall) -> bool:
        """Return whether a call follows the negative prompts alone: guidance's own pass."""
        negative = self.asked.negative_embeds
        if call.kind == "unconditional":
            return True
        if negative is None or call.states is None:
            return False
        return len(call.states) == len(negative) and (
            conditional_block(call.states, negative) is not None
        )


@dataclass(frozen=True)
class PromptMajor:
    """The batch that a loop of one's own must have to be edited: all images of each prompt in turn.

    Attributes:
        asked: its prompts.
        texts: the prompts as text.
        rows: which rows of the batch follow them, where the user says so.
    """

    asked: Asked
    texts: list[str]
    rows: slice | None

    @property
    def images(self) -> int:
        """How many images each prompt has."""
        return len(self.asked.prompt_of) // len(self.texts)

    def check_size(self, batch: int) -> None:
        """Raise ValueError where a batch has other rows than the prompts' images."""
        wanted, prompts = len(self.asked.prompt_of), len(self.texts)
        much = f"{prompts} prompts x images={self.images}"
        if self.rows is not None:
            found = len(range(*self.rows.indices(batch)))
            if found != wanted:
                raise ValueError(
                    f"rows={self.rows} are {found} of the UNet's {batch} rows, and "
                    f"{wanted} follow the prompts ({much}): correct rows= or images="
                )
        elif self.asked.embeds is None and batch not in (wanted, 2 * wanted):
            raise ValueError(
                f"the UNet was called with {batch} rows; {much} are {wanted}, or {2 * wanted} "
                "with guidance: say with images= how many images of each prompt there are"
            )

    def check(self, call: DenoiserCall, span: slice) -> None:
        """Raise ValueError where rows have other texts than the prompts: they'd be edited wrong."""
        states = call.states
        if states is None or self.rows is not None:
            return
        self._check_order(states[span])
        start, known = span.start, self.asked.embeds is not None
        if start and not known and torch.equal(states[:start], states[start:][:start]):
            raise ValueError(
                f"both halves of the UNet's {call.rows} rows have the same embeddings; with "
                f"images={self.images} the first should be guidance's: say with images= how "
                "many images of each prompt there are, or with rows= which rows follow them"
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
                    f"row {row} of those that follow the prompts should be of {prompt.text!r}, its "
                    f"embeddings aren't: give each prompt of session.prompts images={self.images} "
                    "rows, one prompt after another, or say with images= or rows= how it is"
                )


def _alike(one: Tensor, two: Tensor) -> bool:
    """Return whether embeddings are of one text, to the rounding of whoever made them."""
    if torch.equal(one, two):
        return True
    one, two = one.float(), two.float()
    return bool((one - two).abs().max() <= 0.02 * one.abs().max())
