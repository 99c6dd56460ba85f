"""Custom sampling loops: what the user must supply, and what their calls mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models import family_of
from xattn.models.family import DenoiserCall
from xattn.session import events
from xattn.session.clock import clock_of, timestep_of
from xattn.session.origin import Following, Turn, untimely
from xattn.session.rows import PromptMajor, RowFinder
from xattn.session.sampling import Asked
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize_all


@dataclass(frozen=True, eq=False)
class Loop:
    """A custom sampling loop: its UNet, and facts its calls do not reveal.

    Args:
        unet: the denoiser.
        tokenizer: the tokenizer, or both of SDXL's.
        prompt: the prompts, one per image of the batch, or a number of them dividing it. Leave it
            out for ``editing``, which receives its prompts itself.
        scheduler: the scheduler, after ``set_timesteps``: the steps, and so the bytes, are then
            known ahead. Without it every new timestep counts as a step. ``editing`` needs it.
        rows: the rows of the UNet's batch that follow the prompts. By default all of them if there
            are as many as prompts, otherwise the second half, diffusers' [negative, positive].
        embeds: the prompts' embeddings, (images, tokens, channels), to find their rows by
            comparison. Guidance in two passes needs it.
        images: for ``editing``, number of images per prompt; the batch is prompt-major.

    Raises:
        TypeError: unet is not a module.
        ValueError: images is not a positive integer.

    Example:
        >>> loop = xattn.Loop(unet, tokenizer=tokenizer, prompt="a red car", scheduler=scheduler)
        >>> with xattn.record(loop) as trace:
        ...     for t in scheduler.timesteps:
        ...         noise = unet(scheduler.scale_model_input(latents, t), t, states).sample
        ...         latents = scheduler.step(noise, t, latents).prev_sample
    """

    unet: nn.Module
    tokenizer: Any = None
    prompt: str | Sequence[str] | None = None
    scheduler: Any = None
    rows: slice | None = None
    embeds: Tensor | None = None
    images: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.unet, nn.Module):
            raise TypeError(f"unet must be the denoiser, a module, not {type(self.unet).__name__}")
        if self.tokenizer is None:
            raise ValueError("a loop needs tokenizer=, to know its words")
        if isinstance(self.images, bool) or int(self.images) != self.images or self.images < 1:
            raise ValueError(f"images={self.images!r} must be a whole number, 1 or more")

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers sharing the token axis."""
        several = isinstance(self.tokenizer, list | tuple)
        return list(self.tokenizer) if several else [self.tokenizer]

    @property
    def texts(self) -> list[str]:
        """The prompts as text."""
        if self.prompt is None:
            return []
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)


class LoopOrigin:
    """The runs of a custom loop.

    Args:
        loop: the user's description of it.
        prompts: the edited prompts, the source's first; by default the loop's own.
    """

    loop = True

    def __init__(self, loop: Loop, prompts: Sequence[Prompt] | None = None) -> None:
        self.given = loop
        self.denoiser = loop.unet
        self.family = family_of(loop.unet)
        self.edited = prompts is not None
        if prompts is None:
            prompts = [tokenize_all(loop.tokenizers, text) for text in loop.texts]
        each = loop.images if self.edited else 1
        prompt_of = tuple(j for j in range(len(prompts)) for _ in range(each))
        if self.edited and loop.embeds is not None and len(loop.embeds) != len(prompt_of):
            raise ValueError(
                f"embeds has {len(loop.embeds)} rows; {len(prompts)} prompts x images={each} are "
                f"{len(prompt_of)}"
            )
        self._asked = Asked(tuple(prompts), prompt_of, loop.embeds)
        self._before: Tensor | None = None  # text of the call before

    @property
    def scheduler(self) -> Any:
        """The scheduler, or None if the loop has none."""
        return self.given.scheduler

    def components(self) -> tuple[tuple[str, nn.Module], ...]:
        """Return the UNet alone."""
        return (("", self.denoiser),)

    @contextmanager
    def watched(self, receive: events.Receive) -> Iterator[None]:
        """Do nothing: a loop has no pipeline to watch."""
        yield

    def asked(self) -> Asked:
        """Return the prompts shared by every run of the loop."""
        return self._asked

    def turn(
        self,
        call: DenoiserCall,
        following: Following | None,
        asked: Asked | None,
        fresh: Asked | None,
    ) -> Turn:
        """Return what a call means for runs and steps, and whether it counts."""
        turn = self._turn(call, following)
        if turn is not Turn.PASS and self.given.embeds is None and call.states is not None:
            self._before = call.states.detach().clone()  # a loop may write into its tensor
        return turn

    def _turn(self, call: DenoiserCall, following: Following | None) -> Turn:
        if self.given.embeds is not None:
            rows = self._finder(self._asked) if following is None else following.rows
            if rows.find(call) is None:
                return Turn.PASS  # guidance's other pass
        if following is None:
            return Turn.FIRST
        if following.clock is not None:
            if following.clock.is_at(following.number, call.timestep):
                return Turn.NEXT
            if not following.clock.is_at(0, call.timestep) or self._two_passes(call):
                raise RuntimeError(
                    untimely(call, following.clock.schedule, following.number)
                    + "; guidance in two passes needs embeds="
                )
            return Turn.FIRST  # cut short, and started again
        timestep = timestep_of(call.timestep)
        if timestep == following.timestep and self._two_passes(call):
            raise RuntimeError(
                f"the UNet was called twice at timestep {timestep:g} with different texts: "
                "pass embeds=, the prompts' embeddings, to tell which one counts"
            )
        return Turn.FIRST if timestep > following.timestep else Turn.NEXT

    def _two_passes(self, call: DenoiserCall) -> bool:
        """Return whether a call's text differs from that of the call before."""
        if self.given.embeds is not None or self.given.rows is not None:
            return False
        states, before = call.states, self._before
        if states is None or before is None:
            return False
        return states.shape != before.shape or not torch.equal(states, before)

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        """Return a run beginning with a call, on the scheduler's clock if there is one."""
        asked = asked if self.edited else self._as_many_images(asked, call.rows)
        clock = None if self.scheduler is None else clock_of(self.scheduler, None, call.timestep)
        return Following(asked, clock, self._finder(asked))

    def _finder(self, asked: Asked) -> RowFinder:
        rows = self.given.rows
        if not self.edited:
            return RowFinder(asked, rows)
        batch = PromptMajor(asked, [p.text for p in asked.prompts], rows)
        return RowFinder(asked, rows, batch.check_size, batch.check)

    def _as_many_images(self, asked: Asked, batch: int) -> Asked:
        """Return the prompts repeated to as many images of each as the batch has room for."""
        wanted = len(asked.prompt_of)
        if self.given.rows is not None:
            images = len(range(*self.given.rows.indices(batch)))
        elif asked.embeds is not None:
            images = len(asked.embeds)
        elif batch in (wanted, 2 * wanted) or batch % (2 * wanted):
            images = wanted
        else:
            images = batch // 2
        if images % len(asked.prompts):
            raise RuntimeError(
                f"{images} rows follow the prompts, but there are {len(asked.prompts)} prompts: "
                "pass prompt= a text for each row"
            )
        each = images // len(asked.prompts)
        return replace(asked, prompt_of=tuple(i // each for i in range(images)))

    def facts(self) -> dict[str, Any]:
        """Return facts about a run, as plain JSON values."""
        return {
            "pipeline": "own loop",
            "model": type(self.denoiser).__name__,
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "guidance_scale": None,
        }
