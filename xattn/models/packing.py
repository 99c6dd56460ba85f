"""Latents as a pipeline holds them: FLUX's have the places of a grid in one axis.

A family whose pipelines pack their latents has ``pack``, ``unpack`` and ``lay_out``; for all others
latents are held as the autoencoder makes them, and a schedule needs the number of steps alone.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from xattn.models import family_of_pipeline


@runtime_checkable
class Packing(Protocol):
    """The protocol of a family whose pipelines pack their latents."""

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents (rows, channels, height, width) as (rows, places, channels)."""

    def unpack(self, packed: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the inverse of ``pack``; ``size`` is the latents' (height, width)."""

    def lay_out(self, scheduler: Any, steps: int, places: int, device: torch.device) -> None:
        """Set a scheduler's timesteps as the pipeline does for latents of so many places."""


def packing_of(pipe: Any) -> Packing | None:
    """Return a pipeline's family where it packs latents."""
    family = family_of_pipeline(pipe)
    return family if isinstance(family, Packing) else None


def packed(pipe: Any, latents: Tensor) -> Tensor:
    """Return latents (..., channels, height, width) as the pipeline holds them."""
    packing = packing_of(pipe)
    if packing is None:
        return latents
    lead = latents.shape[:-3]
    found: Tensor = packing.pack(latents.flatten(0, -4)).unflatten(0, lead)
    return found


def unpacked(pipe: Any, held: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the inverse of ``packed``; ``size`` is the latents' (height, width)."""
    packing = packing_of(pipe)
    if packing is None:
        return held
    lead = held.shape[:-2]
    found: Tensor = packing.unpack(held.flatten(0, -3), size).unflatten(0, lead)
    return found


def packed_channels(pipe: Any) -> int | None:
    """Return the channels of a picture's packed latents; None where latents aren't packed."""
    packing = packing_of(pipe)
    if packing is None:
        return None
    return packing.pack(torch.zeros(1, int(pipe.vae.config.latent_channels), 2, 2)).shape[-1]


def sides_of(pipe: Any, latents: Tensor) -> dict[str, int]:
    """Return the options of a pipeline's call that say how large packed latents are, in pixels."""
    if packing_of(pipe) is None:
        return {}
    scale = int(pipe.vae_scale_factor)
    return {"height": latents.shape[-2] * scale, "width": latents.shape[-1] * scale}


def lay_out(pipe: Any, scheduler: Any, steps: int, held: Tensor) -> None:
    """Set the timesteps of a scheduler as the pipeline does for latents that it holds."""
    packing = packing_of(pipe)
    if packing is None:
        scheduler.set_timesteps(steps, device=held.device)
    else:
        packing.lay_out(scheduler, steps, held.shape[1], held.device)
