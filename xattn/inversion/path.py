"""The path of a schedule: how much signal and noise its latents hold at each level.

Level 0 is the noisiest, level n the clean end of a run of n steps. Latents here are always the
denoiser's input: schedulers that scale it (Euler) are converted at the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn.session.clock import Schedule

KNOWN = (
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
"""Classes of schedulers whose steps can be inverted."""


@dataclass(frozen=True)
class Path:
    """Levels of noise from the noisiest to the clean one.

    Attributes:
        timesteps: the timestep of each of the n steps.
        signal: share of the image at each of the n + 1 levels.
        noise: share of the noise at each of the n + 1 levels.
        scale: factor from latents here to the scheduler's own, at each level.
        kind: "epsilon", "v_prediction", "sample" or "flow": what the denoiser predicts.
    """

    timesteps: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    scale: tuple[float, ...]
    kind: str

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    @property
    def is_flow(self) -> bool:
        """Whether the path is flow matching's straight line."""
        return self.kind == "flow"

    def time(self, level: int) -> float:
        """Return the timestep of a level; the clean one has flow matching's 0."""
        return self.timesteps[level] if level < self.steps else 0.0

    @classmethod
    def of(cls, scheduler: Any) -> Path:
        """Read a scheduler after ``set_timesteps``.

        Raises:
            ValueError: its steps can't be inverted.
        """
        name = type(scheduler).__name__
        if name not in KNOWN:
            raise ValueError(
                f"{name} can't be inverted; give the pipeline one of {', '.join(KNOWN)}, such as "
                "DDIMScheduler.from_config(pipe.scheduler.config)"
            )
        config = scheduler.config
        plan = Schedule.of(scheduler.timesteps.tolist(), repeats="skip_prk_steps" in config)
        if name.startswith("Flow"):
            sigmas = [float(s) for s in scheduler.sigmas.tolist()]
            signal = tuple(1 - s for s in sigmas)
            return cls(plan.timesteps, signal, tuple(sigmas), (1.0,) * len(sigmas), "flow")
        alphas = _alphas(scheduler, plan.timesteps)
        signal = tuple(a**0.5 for a in alphas)
        scaled = float(scheduler.init_noise_sigma) != 1.0
        scale = tuple(1 / s if scaled else 1.0 for s in signal)
        kind = str(config.get("prediction_type", "epsilon"))
        return cls(plan.timesteps, signal, tuple((1 - a) ** 0.5 for a in alphas), scale, kind)

    # -- one step, in either direction ------------------------------------------------------------

    def moved(
        self,
        latents: Tensor,
        output: Tensor,
        start: int,
        to: int,
        seen: int,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return latents moved from one level to another along a prediction.

        The deterministic step of DDIM (Song et al. 2021, equation 12 with sigma 0), or Euler's
        for a flow; in either direction.

        Args:
            latents: at level ``start``, (rows, channels, height, width).
            output: what the denoiser predicted, of the same shape.
            start: the level of the latents.
            to: the level to move to.
            seen: the level whose timestep the denoiser was called with.
            at: the latents that it was called with; those that are moved by default.
        """
        if self.is_flow:
            return latents + (self.noise[to] - self.noise[start]) * output
        noise = self.noise_of(latents if at is None else at, output, seen)
        clean = (latents - self.noise[start] * noise) / self.signal[start]
        return self.signal[to] * clean + self.noise[to] * noise

    def noise_of(self, latents: Tensor, output: Tensor, level: int) -> Tensor:
        """Return the noise that a prediction means."""
        signal, noise = self.signal[level], self.noise[level]
        if self.kind == "flow":
            return latents + signal * output
        if self.kind == "v_prediction":
            return signal * output + noise * latents
        if self.kind == "sample":
            return (latents - signal * output) / noise
        return output

    def clean_of(self, latents: Tensor, output: Tensor, level: int) -> Tensor:
        """Return the clean latents that a prediction means."""
        if self.kind == "flow":
            return latents - self.noise[level] * output
        noise = self.noise_of(latents, output, level)
        return (latents - self.noise[level] * noise) / self.signal[level]

    def noised(self, clean: Tensor, noise: Tensor, level: int) -> Tensor:
        """Return clean latents noised to a level."""
        return self.signal[level] * clean + self.noise[level] * noise

    def native(self, latents: Tensor, level: int) -> Tensor:
        """Return latents as the scheduler holds them at a level."""
        return latents if self.scale[level] == 1 else latents * self.scale[level]


def _alphas(scheduler: Any, timesteps: Sequence[float]) -> list[float]:
    """Return the cumulative alpha at each level."""
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) == len(timesteps) + 1:
        return (1 / (1 + sigmas.double() ** 2)).tolist()
    known: Tensor = scheduler.alphas_cumprod.double()
    found = [float(known[round(t)]) for t in timesteps]
    spacing = int(scheduler.config.num_train_timesteps) // len(timesteps)
    last = round(timesteps[-1]) - spacing
    final = torch.as_tensor(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return [*found, float(known[last]) if last >= 0 else float(final)]
