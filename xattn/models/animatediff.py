"""AnimateDiff: a UNet of images whose frames are rows, with layers of time between its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.separate import Separate
from xattn.models.unet import UNets, text_states

_IMAGES = UNets()


@dataclass(frozen=True)
class AnimateDiff(Separate):
    """The family of UNets with motion modules (AnimateDiff, Guo et al. 2023).

    Layers that read the text have a row for each frame, and so has the text; motion modules read
    none.
    """

    classes: tuple[str, ...] = ("UNetMotionModel",)
    map_layers: tuple[str, ...] | None = None

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the UNet."""
        return (pipe.unet,)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the layers that read the text, of the UNet or of a ControlNet."""
        found = _IMAGES.layers(denoiser, component)
        return tuple(x for x in found if x.role == "cross" and "motion_modules." not in x.name)

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the latent grid, halved as often as before the layer."""
        return _IMAGES.grid(layer, latent)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``unet(sample, timestep, encoder_hidden_states)``.

        A ControlNet's is one of images.
        """
        if component:
            return _IMAGES.read(arguments, component)
        sample, states = arguments["sample"], text_states(arguments["encoder_hidden_states"])
        frames = int(sample.shape[2])
        if states is not None and len(states) > len(sample):
            states = states[::frames]
        return DenoiserCall(
            sample=sample,
            latent=(int(sample.shape[-2]), int(sample.shape[-1])),
            timestep=arguments["timestep"],
            states=states,
            component=component,
            frames=frames,
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the one axis that the pipeline's tokenizers share."""
        return _IMAGES.axes(pipe, states, given)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, ...)."""
        return _IMAGES.encoded(result)
