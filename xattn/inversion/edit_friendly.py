"""Edit-friendly noise space of DDPM (Huberman-Spiegelglas et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xattn.inversion.inversion import Inversion
from xattn.inversion.method import DIFFUSION, Asked, Found, Method, stacked
from xattn.inversion.path import Path
from xattn.inversion.solver import Solver, stands_in


class EditFriendly(Method):
    """Read off the noise that a stochastic sampler would have to draw, and draw it in edits.

    Every level is noised on its own, x[t] = sqrt(a[t]) x + sqrt(1 - a[t]) e[t], and the sampler's
    noise between two of them is z[t] = (x[t - 1] - mu(x[t])) / sigma[t], with eta = 1. Edits draw
    all images with these noises; they begin after 36 % of the run, the authors' T_skip of 36 in
    100 steps. Their guidance scales, 3.5 for the inversion and 15 for edits, are one here.
    """

    name = "edit-friendly"
    kinds = frozenset((DIFFUSION,))
    guided = True
    start = 0.36

    def extra(self, steps: int, latent: int, text: int) -> int:
        """Return the numbers of the noises."""
        return steps * latent

    def invert(self, asked: Asked, what: str) -> Found:
        """Return the independently noised levels, and the noises between them."""
        solver = NoiseReader(asked.pipe.scheduler, asked.clean, asked.generator)
        solver.set_timesteps(asked.steps, device=asked.clean.device)
        first = solver.levels[0].to(asked.clean.dtype)
        asked.run(solver, first, asked.guidance, what)
        solver.pivots = dict(enumerate(solver.levels))
        noises = torch.stack(solver.noises)  # (steps, 1, channels, height, width)
        return Found(stacked(solver, asked.clean), solver.path.timesteps, noises)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Descend by the stochastic sampler with the noises that were read off."""
        assert inversion.extra is not None
        with stands_in(pipe, NoiseReplay(pipe.scheduler, inversion.extra)):
            yield


def mean_of(path: Path, latents: Tensor, output: Tensor, level: int) -> tuple[Tensor, float]:
    """Return the mean and deviation of DDPM's step from a level (Song et al. 2021, eta = 1)."""
    ratio = path.signal[level] / path.signal[level + 1]
    noise, less = path.noise[level], path.noise[level + 1]
    variance = (less / noise) ** 2 * (1 - ratio**2)
    clean = path.clean_of(latents, output, level)
    along = max(less**2 - variance, 0.0) ** 0.5
    mean = path.signal[level + 1] * clean + along * path.noise_of(latents, output, level)
    return mean, float(max(variance, 0.0) ** 0.5)


class NoiseReader(Solver):
    """A walk over independently noised levels, which notes the noise between them.

    Attributes:
        levels: the latents of each level but the clean one.
        noises: the noise of each step; zero where the sampler adds none.
    """

    def __init__(self, scheduler: Any, clean: Tensor, generator: torch.Generator | None) -> None:
        super().__init__(scheduler, up=False)
        self.clean = clean.float()
        self.generator = generator
        self.levels: list[Tensor] = []
        self.noises: list[Tensor] = []

    def begin(self) -> None:
        """Noise each level the first time."""
        if self.levels:
            return
        place = "cpu" if self.generator is None else self.generator.device
        for level in range(self.path.steps):
            drawn = torch.randn(self.clean.shape, generator=self.generator, device=place)
            self.levels.append(self.path.noised(self.clean, drawn.to(self.clean), level))

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the next level, whatever the prediction, and note the noise that leads there."""
        mean, deviation = mean_of(self.path, latents, output, index)
        last = index + 1 == self.path.steps
        following = self.clean if last else self.levels[index + 1]
        noise = (following - mean) / deviation if deviation > 0 else torch.zeros_like(mean)
        self.noises.append(noise)
        return following


class NoiseReplay(Solver):
    """The stochastic sampler with given noises, the same for every image."""

    def __init__(self, scheduler: Any, noises: Tensor) -> None:
        super().__init__(scheduler, up=False)
        self.noises = noises

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return the latents after a step."""
        mean, deviation = mean_of(self.path, latents, output, index)
        return mean + deviation * self.noises[index].to(mean)
