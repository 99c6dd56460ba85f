"""The latents of a denoiser's call: which channels are theirs, their scale, moved copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.session.sampling import Sampling


def channels_of(sampling: Sampling, sample: Tensor) -> int:
    """Return how many of a sample's channels are the latents'; an inpainting UNet has more."""
    width = sample.shape[1] if sample.ndim == 4 else sample.shape[-1]
    return min(sampling.channels, width) if sample.ndim == 4 else int(width)


def moved(start: Tensor, shift: Tensor | None, scale: float, channels: int) -> Tensor:
    """Return a sample with its latents moved by a shift."""
    moved = start.detach().clone()
    if shift is not None:
        part = moved[:, :channels] if moved.ndim == 4 else moved[..., :channels]
        part.copy_((part.float() + scale * shift).to(part.dtype))
    return moved


def input_scale(scheduler: Any, timestep: Any) -> float:
    """Return the factor between the latents and the denoiser's sample."""
    scaling = getattr(scheduler, "scale_model_input", None)
    if scaling is None:
        return 1.0
    at = timestep.flatten()[0] if isinstance(timestep, Tensor) and timestep.ndim else timestep
    return float(scaling(torch.ones(1), at))
