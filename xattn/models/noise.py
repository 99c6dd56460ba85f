"""Clean latents of a denoiser's prediction, by diffusion and by flow matching."""

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


def clean_of_flow(scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
    """Return the clean latents x - sigma v that a velocity means (Lipman et al. 2023).

    Args:
        scheduler: after ``set_timesteps``; its ``sigmas`` are those of its ``timesteps``.
        sample: the denoiser's input x, (rows, channels, height, width).
        output: the velocity v, noise less image; the first channels of ``sample`` are its.
        timestep: one of the scheduler's.

    Raises:
        ValueError: the scheduler has no ``sigmas``.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        raise ValueError(
            f"previews=True can't be had with {type(scheduler).__name__}, which has no sigmas; "
            "leave it out"
        )
    index = int((scheduler.timesteps.float() - timestep).abs().argmin())
    sample = sample[:, : output.shape[1]].float()
    if getattr(scheduler, "config", {}).get("invert_sigmas"):  # they rise to 1, which is clean
        return sample + (1 - float(sigmas[index])) * output.float()
    return sample - float(sigmas[index]) * output.float()


def clean_of_either(scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
    """Return the clean latents that a prediction means to its scheduler: of a flow, or not.

    Multistep solvers serve both; a learned variance, the output's second half, is left out.
    """
    output = output[:, : sample.shape[1]]
    config: Any = getattr(scheduler, "config", {})
    flows = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if flows or not hasattr(scheduler, "alphas_cumprod"):
        return clean_of_flow(scheduler, sample, output, timestep)
    return clean_latents(scheduler, sample, output, timestep)
