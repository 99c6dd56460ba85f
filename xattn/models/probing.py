"""What a probe asks of a model: noised latents at a level, and one call of the denoiser.

A level is a share of the noise schedule, in (0, 1): at 0.5 the timestep halfway. For diffusion the
latents of a level are sqrt(a) x + sqrt(1 - a) e with the schedule's cumulative a (Ho et al. 2020);
for flow matching (1 - s) x + s e with s the level itself (Lipman et al. 2023), whatever shift the
scheduler applies to its own timesteps.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from xattn.models.family import DenoiserCall
from xattn.models.noise import clean_latents


@runtime_checkable
class Probed(Protocol):
    """The protocol of a family whose models can be probed with a given image."""

    def level_timestep(self, scheduler: Any, level: float) -> float:
        """Return the scheduler's timestep at a share of its noise schedule."""

    def noised(self, scheduler: Any, clean: Tensor, noise: Tensor, level: float) -> Tensor:
        """Return clean latents noised to a level."""

    def estimate(self, scheduler: Any, sample: Tensor, output: Tensor, level: float) -> Tensor:
        """Return the clean latents that an output at a level means, float32."""

    def signal(self, scheduler: Any, level: float) -> float:
        """Return the signal-to-noise ratio at a level."""

    def latents(self, call: DenoiserCall) -> Tensor:
        """Return a call's noised latents, (rows, channels, height, width), unpacked."""

    def denoise(self, pipe: Any, latents: Tensor, timestep: float, encoded: Any) -> Tensor:
        """Return the denoiser's output, (images, channels, height, width), by one call.

        Args:
            pipe: the pipeline.
            latents: (images, channels, height, width), noised.
            timestep: of ``level_timestep``.
            encoded: what ``pipe.encode_prompt`` returned for the images' prompts.
        """


def probed_family(family: Any) -> Probed | None:
    """Return a family that can be probed, or None.

    Its class has a ``denoise`` of its own: one that it inherits calls another model.
    """
    own = "denoise" in type(family).__dict__
    return family if own and isinstance(family, Probed) else None


class DiffusionLevels:
    """Levels of a variance-preserving diffusion."""

    def level_timestep(self, scheduler: Any, level: float) -> float:
        """Return the nearest timestep of training."""
        count = int(scheduler.config.num_train_timesteps)
        return float(min(max(round(level * count), 0), count - 1))

    def noised(self, scheduler: Any, clean: Tensor, noise: Tensor, level: float) -> Tensor:
        """Return sqrt(a) x + sqrt(1 - a) e.

        Raises:
            ValueError: the scheduler has no ``alphas_cumprod``.
        """
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise ValueError(
                f"probe does not work with {type(scheduler).__name__}, which has no "
                "alphas_cumprod: give the pipeline a DDIMScheduler first"
            )
        alphas = alphas.to(device=clean.device, dtype=clean.dtype)
        alpha = alphas[int(self.level_timestep(scheduler, level))]
        mixed: Tensor = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        return mixed

    def estimate(self, scheduler: Any, sample: Tensor, output: Tensor, level: float) -> Tensor:
        """Return the clean latents of a predicted noise, velocity or sample."""
        return clean_latents(scheduler, sample, output, self.level_timestep(scheduler, level))

    def signal(self, scheduler: Any, level: float) -> float:
        """Return a / (1 - a)."""
        alpha = float(scheduler.alphas_cumprod[int(self.level_timestep(scheduler, level))])
        return alpha / (1 - alpha)

    def latents(self, call: DenoiserCall) -> Tensor:
        """Return the sample as it is."""
        return call.sample


class FlowLevels:
    """Levels of flow matching."""

    def level_timestep(self, scheduler: Any, level: float) -> float:
        """Return the level on the scale of the scheduler's timesteps."""
        return level * int(scheduler.config.num_train_timesteps)

    def noised(self, scheduler: Any, clean: Tensor, noise: Tensor, level: float) -> Tensor:
        """Return (1 - s) x + s e, s being the level."""
        return (1 - level) * clean + level * noise

    def estimate(self, scheduler: Any, sample: Tensor, output: Tensor, level: float) -> Tensor:
        """Return x - s v, s being the level."""
        return sample.float() - level * output.float()

    def signal(self, scheduler: Any, level: float) -> float:
        """Return ((1 - s) / s) squared."""
        return ((1 - level) / level) ** 2

    def latents(self, call: DenoiserCall) -> Tensor:
        """Return the sample as it is."""
        return call.sample


def decoded_pictures(pipe: Any, latents: Tensor) -> Tensor:
    """Return clean latents as pictures, (images, 3, height, width) in [0, 1], differentiable.

    Args:
        pipe: a pipeline with a ``vae``.
        latents: (images, channels, height, width), scaled as the denoiser sees them.
    """
    vae = pipe.vae
    config, found = vae.config, latents.float()
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        shift, scale = (found.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        found = found * scale / config.scaling_factor + shift
    else:
        found = found / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    drawn: Tensor = vae.decode(found.to(vae.dtype), return_dict=False)[0]
    return (drawn.float() / 2 + 0.5).clamp(0, 1)


def encoded_pictures(pipe: Any, pixels: Tensor) -> Tensor:
    """Return pictures as the denoiser's clean latents, float32: the autoencoder's mode, scaled.

    Args:
        pipe: a pipeline with a ``vae``.
        pixels: (images, 3, height, width), in [-1, 1].

    Raises:
        TypeError: the pipeline has no autoencoder of images.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "encode"):
        raise TypeError(f"{type(pipe).__name__} has no autoencoder, so it can't be probed")
    config, dtype = vae.config, vae.dtype
    upcast = dtype == torch.float16 and bool(getattr(config, "force_upcast", False))
    if upcast:
        vae.to(torch.float32)
    try:
        found: Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
    finally:
        if upcast:
            vae.to(dtype)
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        shift, scale = (found.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        return (found - shift) * float(config.scaling_factor) / scale
    shift_factor = float(getattr(config, "shift_factor", None) or 0)
    return (found - shift_factor) * float(config.scaling_factor)
