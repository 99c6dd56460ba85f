"""A source that was run before, kept so that later edits needn't sample it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class KeptSource:
    """What edits need of a source's run: attention inputs, latents, maps, and the noise's seed.

    Of every cross-attention layer, and of the self-attention layers that edits may touch, the
    queries of each denoiser call and the keys: numbers in the run's dtype. For Stable Diffusion
    1.5 at 512 px in half precision that is about 30 MB a step for each image.

    Attributes:
        prompt: the source's prompt.
        images: how many images it has, one for each seed.
        options: what the pipeline was called with.
        generators: as they stood before the run.
        layers: for each layer the source's queries and keys at each denoiser call.
        latents: after each step, LocalBlends applied, (images, channels, height, width).
        maps: LocalBlend's maps, summed over the steps so far, (images, tokens, h, w).
        pictures: the source's images.
    """

    prompt: str
    images: int
    options: dict[str, Any] = field(default_factory=dict)
    generators: list[torch.Generator] = field(default_factory=list)
    layers: dict[str, Pairs] = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        tensors = [t for calls in self.layers.values() for pair in calls for t in pair]
        distinct = {t.data_ptr(): t.nbytes for t in [*tensors, *self.latents, *self.maps]}
        return sum(distinct.values())
