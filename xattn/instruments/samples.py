"""Samples: the denoiser's own inputs along a run, one image's."""

from __future__ import annotations

from torch import Tensor

from xattn.models.family import DenoiserCall
from xattn.models.probing import Probed
from xattn.session.clock import timestep_of
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Samples(Instrument):
    """Keep what the denoiser receives for one image at each step's first call.

    A step takes as much memory as the image's latents, on their device.

    Args:
        probed: the denoiser's family.
        image: index of the image.

    Attributes:
        kept: (timestep, latents (1, channels, height, width)) of each step, of the latest run.
    """

    def __init__(self, probed: Probed, image: int = 0) -> None:
        self.probed = probed
        self.image = image
        self.kept: list[tuple[float, Tensor]] = []

    def begin(self, sampling: Sampling) -> None:
        """Forget the run before."""
        self.kept = []

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Keep the image's conditional row."""
        if call.component or not call.begins_step or not call.conditional:
            return
        latents = self.probed.latents(call)[call.conditional[0]]
        row = latents[self.image : self.image + 1].detach().clone()
        self.kept.append((timestep_of(call.timestep), row))
