"""Clean latents from a denoiser's prediction."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def clean_latents(scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
    """Return the clean latents implied by a denoiser's output (Ho et al. 2020).

    ``sample`` is the denoiser's input: schedulers scale it to unit variance before the call, so
    one formula fits all of them.

    Raises:
        ValueError: the scheduler has no ``alphas_cumprod``.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(
            f"previews=True does not work with {type(scheduler).__name__}, which has no "
            "alphas_cumprod; leave it out"
        )
    index = min(max(round(timestep), 0), len(alphas) - 1)
    alpha = float(alphas[index])
    sample = sample[:, : output.shape[1]].float()  # an inpainting UNet also receives mask and image
    output = output.float()
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "sample":
        return output
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if kind == "v_prediction":
        return signal * sample - noise * output
    return (sample - noise * output) / signal
