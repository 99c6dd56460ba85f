"""States: the noised latents at which the denoiser is asked what a word does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.models.probing import Probed


@dataclass(frozen=True)
class States:
    """Noised latents of one image, at some levels.

    Attributes:
        latents: (states, channels, height, width).
        levels: the share of the noise schedule of each state.
        timesteps: the scheduler's timestep of each.
        signal: the signal-to-noise ratio of each.
    """

    latents: Tensor
    levels: tuple[float, ...]
    timesteps: tuple[float, ...]
    signal: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.levels)

    @classmethod
    def of_run(
        cls,
        scheduler: Any,
        probed: Probed,
        kept: Sequence[tuple[float, Tensor]],
        levels: Sequence[float],
    ) -> States:
        """Return a run's own latents at the steps nearest to some levels, each once.

        Args:
            scheduler: the pipeline's.
            probed: its family.
            kept: (timestep, latents) of each step.
            levels: shares of the noise schedule.
        """
        count = int(scheduler.config.num_train_timesteps)
        there = [min(max(timestep / count, 1e-3), 1 - 1e-3) for timestep, _ in kept]
        nearest = [min(range(len(kept)), key=lambda n: abs(there[n] - level)) for level in levels]
        chosen = list(dict.fromkeys(nearest))
        return cls(
            torch.cat([kept[n][1].float() for n in chosen]),
            tuple(there[n] for n in chosen),
            tuple(probed.level_timestep(scheduler, there[n]) for n in chosen),
            tuple(probed.signal(scheduler, there[n]) for n in chosen),
        )

    @classmethod
    def noised(
        cls,
        scheduler: Any,
        probed: Probed,
        clean: Tensor,
        levels: Sequence[float],
        noises: int = 1,
        seed: int = 0,
    ) -> States:
        """Return an image's latents noised to each level, several times.

        Args:
            scheduler: the pipeline's.
            probed: its family.
            clean: the image's latents, (1, channels, height, width).
            levels: shares of the noise schedule.
            noises: how many noises at each level.
            seed: of the first noise; the n-th has ``seed + n``, the same at every level.
        """
        drawn = [
            torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + n)).to(clean)
            for n in range(noises)
        ]
        each = [level for level in levels for _ in range(noises)]
        noised = [
            probed.noised(scheduler, clean, noise, level) for level in levels for noise in drawn
        ]
        return cls(
            torch.cat(noised),
            tuple(each),
            tuple(probed.level_timestep(scheduler, level) for level in each),
            tuple(probed.signal(scheduler, level) for level in each),
        )
