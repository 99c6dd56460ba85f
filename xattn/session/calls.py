"""Denoiser calls of the user's own, each for itself: no schedule, no steps, no runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from xattn.models import family_of, family_of_pipeline
from xattn.models.family import Axis, DenoiserCall
from xattn.session import events
from xattn.session.axis import axis_prompts
from xattn.session.origin import Following, Turn
from xattn.session.rows import RowFinder
from xattn.session.sampling import Asked
from xattn.text.prompt import Prompt


class CallsOrigin:
    """Single denoiser calls; each is a run of its own, so that timesteps mean nothing.

    Args:
        model: a denoiser, or the pipeline that holds it.
        tokenizer: the denoiser's tokenizer, or several in the order of its pipeline's; a
            pipeline's own by default.
        prompt: the texts, one for each image of the batch, or a number that divides it.
        rows: the rows that follow the prompts; by default all of them, or the second half if
            there are twice as many as prompts.

    Raises:
        TypeError: the model is of no known family.
        ValueError: tokenizer or prompt is missing.
    """

    loop = True
    scheduler = None

    def __init__(
        self, model: Any, tokenizer: Any, prompt: str | Sequence[str], rows: slice | None = None
    ) -> None:
        if isinstance(model, nn.Module):
            if tokenizer is None:
                raise ValueError("a bare denoiser needs tokenizer=, to know its words")
            self.family, self.denoiser = family_of(model), model
            self._holder: Any = _holder(tokenizer)
        else:
            self.family = family_of_pipeline(model)
            self.denoiser = self.family.denoisers(model)[0]
            self._holder = model if tokenizer is None else _holder(tokenizer)
        self.texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not self.texts:
            raise ValueError("prompt= must hold at least one text")
        self.rows = rows
        for axis in self._axes():  # a word that is missing is missing early
            here = replace(axis, offset=0)
            axis_prompts((here,), self.texts, axis.length or axis.tokenizers[0].model_max_length)

    def components(self) -> tuple[tuple[str, nn.Module], ...]:
        """Return the denoiser alone."""
        return (("", self.denoiser),)

    @contextmanager
    def watched(self, receive: events.Receive) -> Iterator[None]:
        """Do nothing: there is no pipeline to watch."""
        yield

    def asked(self) -> Asked:
        """Return the prompts without their embeddings' length, which the first call tells."""
        return Asked((), (), None)

    def turn(
        self,
        call: DenoiserCall,
        following: Following | None,
        asked: Asked | None,
        fresh: Asked | None,
    ) -> Turn:
        """Return that a call begins a run of its own."""
        return Turn.FIRST

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        """Return the run of a call, with as many images as it has rows for the prompts.

        Raises:
            RuntimeError: the rows that follow the prompts are no multiple of the prompts.
        """
        prompts = self._prompts(call.states)
        span = self._span(call.rows, len(prompts))
        images = span.stop - span.start
        if not images or images % len(prompts):
            raise RuntimeError(
                f"{images} rows follow the prompts, but there are {len(prompts)} prompts: pass "
                "prompt= a text for each row, or rows= the rows that follow them"
            )
        each = images // len(prompts)
        found = Asked(tuple(prompts), tuple(i // each for i in range(images)))
        return Following(found, None, RowFinder(found, span))

    def _span(self, batch: int, prompts: int) -> slice:
        if self.rows is not None:
            start, stop, _ = self.rows.indices(batch)
            return slice(start, stop)
        return slice(prompts, batch) if batch == 2 * prompts else slice(0, batch)

    def _prompts(self, states: Tensor | None) -> list[Prompt]:
        axes = self._axes(states)
        last = axes[-1]
        length = last.offset + int(last.length or last.tokenizers[0].model_max_length)
        return axis_prompts(axes, self.texts, length if states is None else states.shape[1])

    def _axes(self, states: Tensor | None = None) -> tuple[Axis, ...]:
        """Return the token axis.

        Raises:
            TypeError: tokenizers alone don't tell how the family's pipeline reads a prompt.
        """
        try:
            return self.family.axes(self._holder, states)
        except (AttributeError, TypeError, KeyError) as error:
            if not isinstance(self._holder, Held):
                raise
            raise TypeError(
                f"a bare {type(self.denoiser).__name__} and tokenizer= don't tell how its pipeline "
                f"reads a prompt ({error}): pass the pipeline in its place"
            ) from error

    def facts(self) -> dict[str, Any]:
        """Return facts about a run, as plain JSON values."""
        return {"pipeline": "own calls", "model": type(self.denoiser).__name__}


class Held(SimpleNamespace):
    """What a family reads tokenizers from: the attributes of a pipeline."""


def _holder(tokenizer: Any) -> Held:
    given = list(tokenizer) if isinstance(tokenizer, list | tuple) else [tokenizer]
    names = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
    found = dict(zip(names, given, strict=False))
    if len(given) == 1:  # FLUX reads words by its second alone
        found["tokenizer_2"] = given[0]
    return Held(**{"tokenizer_2": None, "tokenizer_3": None, **found})
