"""What denoisers are like: a file for each family, and the table that knows them all."""

from __future__ import annotations

from typing import Any

from torch import nn

from xattn.models.family import Family
from xattn.models.unet import UNets

FAMILIES: tuple[Family, ...] = (UNets(),)
"""A row for each family."""


def family_of(denoiser: nn.Module) -> Family:
    """Return the family of a denoiser, by its class or one of those it derives from.

    Raises:
        TypeError: none of the families knows it.
    """
    model: Any = getattr(denoiser, "_orig_mod", denoiser)
    names = {kind.__name__ for kind in type(model).__mro__}
    for family in FAMILIES:
        if names.intersection(family.classes):
            return family
    if hasattr(model, "down_blocks"):  # a UNet of somebody's own
        return FAMILIES[0]
    known = ", ".join(name for family in FAMILIES for name in family.classes)
    raise TypeError(
        f"{type(model).__name__} has no layers of text attention that xattn knows; the denoisers "
        f"that it knows are: {known}"
    )


def family_of_pipeline(pipe: Any) -> Family:
    """Return the family of a pipeline's denoiser.

    Raises:
        TypeError: the pipeline has no denoiser with a text encoder that a family knows.
    """
    for name in ("unet", "transformer"):
        denoiser = getattr(pipe, name, None)
        if isinstance(denoiser, nn.Module) and hasattr(pipe, "encode_prompt"):
            return family_of(denoiser)
    raise TypeError(
        f"{type(pipe).__name__} has no denoiser with a text encoder that xattn knows; pass a "
        "Stable Diffusion or SDXL pipeline, or xattn.Loop(unet, tokenizer=, prompt=) for a "
        "sampling loop of your own"
    )
