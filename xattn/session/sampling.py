"""One descent of the schedule under way: what is known about it while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.family import AttentionLayer, Family
from xattn.records.run import Run
from xattn.session.clock import Schedule
from xattn.text.prompt import Prompt


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        prompts: the prompts, the negative ones after the others where they are recorded, too.
        prompt_of: for each image which of ``prompts`` it follows.
        embeds: the positive prompts' embeddings, (images, tokens, channels), or None.
        negative_embeds: the negative prompts'.
    """

    prompts: tuple[Prompt, ...]
    prompt_of: tuple[int, ...]
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None


@dataclass
class Sampling:
    """A run's schedule, prompts, latent size and device; it exists as long as the run does.

    Attributes:
        family: what its denoiser is like.
        denoiser: the model.
        asked: prompts and embeddings.
        schedule: its calls and steps; None where a loop of one's own doesn't say.
        scheduler: what takes its steps, where it is known.
        sample: the latents of its first call.
        latent: (height, width) of the latents.
        compiled: whether the denoiser's calls go through torch.compile.
        loop: whether the calls are those of a loop of one's own.
        facts: what is worth knowing about it, plain JSON values.
        estimates: float16 (steps, images, channels, height, width), where previews are kept.
        affinity: float16 (images, height, width, height, width), where affinities are kept.
        run: what is recorded of it; None where nothing is.
    """

    family: Family
    denoiser: nn.Module
    asked: Asked
    schedule: Schedule | None
    sample: Tensor
    latent: tuple[int, int]
    scheduler: Any = None
    compiled: bool = False
    loop: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    estimates: Tensor | None = None
    affinity: Tensor | None = None
    run: Run | None = None

    @property
    def device(self) -> torch.device:
        """Where the denoiser runs."""
        return self.sample.device

    @property
    def images(self) -> int:
        """How many images are recorded, those of negative prompts included."""
        return len(self.asked.prompt_of)

    @property
    def steps(self) -> int | None:
        """How many steps the schedule has; None where nobody knows."""
        return None if self.schedule is None else len(self.schedule.timesteps)

    @property
    def channels(self) -> int:
        """How many channels the latents have; an inpainting UNet sees more."""
        return int(getattr(self.denoiser, "config", {}).get("out_channels", self.sample.shape[1]))

    def grid(self, layer: AttentionLayer) -> tuple[int, int]:
        """Return (height, width) of a layer's image queries."""
        return self.family.grid(layer, self.latent)
