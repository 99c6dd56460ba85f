"""Previews: the denoiser's estimate of the image at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.models.family import DenoiserCall
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Previews(Instrument):
    """Keep the clean latents estimated at each step.

    It runs before the recorder, whose run includes the result.
    """

    def begin(self, sampling: Sampling) -> None:
        """Allocate the estimates of all steps.

        Raises:
            ValueError: the schedule or its noise levels are unknown, or the latents are a video's.
        """
        if sampling.schedule is None:
            raise ValueError("previews=True needs scheduler=, to know the noise of each step")
        sample = sampling.sample
        if sample.ndim > 4:
            raise ValueError(
                f"previews=True can't be had with {type(sampling.denoiser).__name__}: its latents "
                "are a video's, even of one frame; leave it out"
            )
        # fail before the first step if the scheduler cannot tell clean latents
        _clean(sampling, sample[:0], sample[:0], sampling.schedule.timesteps[0])
        steps = len(sampling.schedule.timesteps)
        size = (steps, sampling.images, sampling.channels, *sample.shape[-2:])
        sampling.estimates = torch.zeros(size, dtype=torch.float16, device=sample.device)

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Raise ValueError where the pipeline guides by more than a negative row of each image.

        It does not tell the weights of the others. A loop's estimates are those without guidance.
        """
        rows = call.conditional[0]
        three = call.rows == 3 * (rows.stop - rows.start) and not (sampling.loop or call.component)
        if three or sampling.asked.perturbed:
            by = "three rows of each image" if three else "perturbed rows"
            raise ValueError(
                f"previews=True can't be had with {sampling.facts.get('pipeline')} as it is "
                f"called: it guides by {by}, whose weights it does not tell; leave it out"
            )

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Keep a call's estimate, with guidance applied as in the pipeline."""
        if sampling.estimates is None or sampling.schedule is None:
            return
        rows, noise = call.conditional[0], call.output
        sample, guided = call.sample[rows], noise[rows]
        scale = sampling.facts.get("guidance_scale")
        if scale and len(noise) == 2 * len(guided):
            other = noise[: len(guided)] if rows.start else noise[len(guided) :]
            guided = other + scale * (guided - other)
        clean = _clean(sampling, sample, guided, sampling.schedule.at[call.number])
        sampling.estimates[call.step].copy_(clean.detach(), non_blocking=True)

    def end(self, sampling: Sampling) -> None:
        """Copy the estimates from the device."""
        if sampling.run is not None and sampling.run.estimates is not None:
            sampling.run.estimates = sampling.run.estimates.cpu()


def _clean(sampling: Sampling, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
    return sampling.family.clean(sampling.scheduler, sample, output, timestep)
