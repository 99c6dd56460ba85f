"""Previews: what the denoiser expects the image to be, at each step."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.models.family import DenoiserCall
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Previews(Instrument):
    """Keep the clean latents that each step's prediction means.

    It stands before the recorder, whose run takes what it keeps.
    """

    def begin(self, sampling: Sampling) -> None:
        """Make room for the estimates of every step.

        Raises:
            ValueError: the schedule or its noise isn't known.
        """
        if sampling.schedule is None:
            raise ValueError("previews=True needs scheduler=, to know the noise of each step")
        sample = sampling.sample
        _clean(sampling, sample[:0], sample[:0], sampling.schedule.timesteps[0])  # or says why not
        steps = len(sampling.schedule.timesteps)
        size = (steps, sampling.images, sampling.channels, *sample.shape[-2:])
        sampling.estimates = torch.zeros(size, dtype=torch.float16, device=sample.device)

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Keep what the prediction means, guidance applied as the pipeline does."""
        if sampling.estimates is None or sampling.schedule is None:
            return
        rows, noise = call.conditional[0], call.output
        sample, guided = call.sample[rows], noise[rows]
        scale = sampling.facts.get("guidance_scale")
        if scale and len(noise) == 2 * len(guided):
            other = noise[: len(guided)] if rows.start else noise[len(guided) :]
            guided = other + scale * (guided - other)
        clean = _clean(sampling, sample, guided, sampling.schedule.timesteps[call.step])
        sampling.estimates[call.step].copy_(clean.detach(), non_blocking=True)

    def end(self, sampling: Sampling) -> None:
        """Bring the estimates from the device."""
        if sampling.run is not None and sampling.run.estimates is not None:
            sampling.run.estimates = sampling.run.estimates.cpu()


def _clean(sampling: Sampling, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
    return sampling.family.clean(sampling.scheduler, sample, output, timestep)
