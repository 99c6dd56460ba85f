"""The sizes of images that a pipeline draws."""

from __future__ import annotations

import math
from typing import Any

from xattn.models import family_of_pipeline


def denoiser_of(pipe: Any) -> Any:
    """Return a pipeline's denoiser, the first of several.

    Raises:
        TypeError: the pipeline has no supported denoiser with a text encoder.
    """
    return family_of_pipeline(pipe).denoisers(pipe)[0]


def size_factor(pipe: Any) -> int:
    """Return the number of pixels that an image's height and width must be multiples of.

    At least 8; the pixels of a latent times the latents of a patch where that is more.
    """
    family, denoiser = family_of_pipeline(pipe), denoiser_of(pipe)
    patches = {layer.patch for layer in family.layers(denoiser)}
    return math.lcm(8, int(getattr(pipe, "vae_scale_factor", 8)) * math.lcm(*patches))


def usual_size(pipe: Any) -> tuple[int, int]:
    """Return the (height, width) in pixels of the images that a model was made for."""
    config = denoiser_of(pipe).config
    side = getattr(pipe, "default_sample_size", None) or config.sample_size
    height, width = (side, side) if isinstance(side, int) else tuple(side)
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    return int(height) * scale, int(width) * scale
