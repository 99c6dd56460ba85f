"""The current run: everything known about it while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.family import AttentionLayer, Family
from xattn.records.run import Run
from xattn.session.clock import Schedule
from xattn.text.prompt import Prompt


@dataclass(frozen=True)
class Asked:
    """The prompts and embeddings of a run.

    Attributes:
        prompts: the prompts, followed by the negative ones if they are recorded.
        prompt_of: for each image, the index of its prompt in ``prompts``.
        embeds: the positive prompts' embeddings, (images, tokens, channels), or None.
        negative_embeds: the negative prompts'.
        before: what was encoded before it, where guidance's negative prompts have an
            ``encode_prompt`` of their own: which of the two the images follow, the calls say.
        tokenize: a function from another text to its prompt on the same token axis, if known.
        length: number of positions of the token axis, if known.
        repeats: whether the embeddings are those of one image of each prompt, and the calls say
            how many there are.
        perturbed: whether the last rows of each call are copies of the conditional ones whose
            attention the pipeline perturbs.
    """

    prompts: tuple[Prompt, ...]
    prompt_of: tuple[int, ...]
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None
    before: Asked | None = None
    tokenize: Callable[[str], Prompt] | None = None
    length: int | None = None
    repeats: bool = False
    perturbed: bool = False

    def times(self, images: int) -> Asked:
        """Return the same for several images of each prompt, one prompt's after another."""
        if images == 1 or self.embeds is None:
            return self
        negative = self.negative_embeds
        return replace(
            self,
            prompt_of=tuple(prompt for prompt in self.prompt_of for _ in range(images)),
            embeds=self.embeds.repeat_interleave(images, 0),
            negative_embeds=None if negative is None else negative.repeat_interleave(images, 0),
            repeats=False,
        )


@dataclass
class Sampling:
    """A run's schedule, prompts, latent size and device; it exists as long as the run does.

    Attributes:
        family: the family of its denoiser.
        denoiser: the model.
        asked: prompts and embeddings.
        schedule: its calls and steps; None in a custom loop without a scheduler.
        scheduler: the scheduler, if known.
        sample: the latents of its first call.
        latent: (height, width) of the latents.
        frames: how many frames each map has; 1 of an image.
        compiled: whether the denoiser's calls go through torch.compile.
        loop: whether the calls come from a custom loop.
        facts: facts about the run, plain JSON values.
        estimates: float16 (steps, images, channels, height, width), if previews are kept.
        affinity: float16 (images, height, width, height, width), if affinities are kept.
        run: its recorded run; None if nothing is recorded.
    """

    family: Family
    denoiser: nn.Module
    asked: Asked
    schedule: Schedule | None
    sample: Tensor
    latent: tuple[int, int]
    scheduler: Any = None
    frames: int = 1
    compiled: bool = False
    loop: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    estimates: Tensor | None = None
    affinity: Tensor | None = None
    run: Run | None = None

    @property
    def device(self) -> torch.device:
        """The denoiser's device."""
        return self.sample.device

    @property
    def images(self) -> int:
        """Number of recorded images, including those of negative prompts."""
        return len(self.asked.prompt_of)

    @property
    def steps(self) -> int | None:
        """Number of steps in the schedule; None if unknown."""
        return None if self.schedule is None else len(self.schedule.timesteps)

    @property
    def channels(self) -> int:
        """Number of latent channels; an inpainting UNet's input has more.

        The output has twice as many where the model learned a variance, too. Packed latents have
        their channels last.
        """
        axis = 1 if self.sample.ndim > 3 else -1
        config, given = getattr(self.denoiser, "config", {}), int(self.sample.shape[axis])
        return min(int(config.get("out_channels") or given), given)

    def grid(self, layer: AttentionLayer) -> tuple[int, int]:
        """Return (height, width) of a layer's image queries."""
        return self.family.grid(layer, self.latent)
