"""The bundled models as pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)

from xattn.devices import DTYPE, no_bars, usual_device

Model = Literal["unet", "contextual", "mmdit"]

MODELS: tuple[Model, ...] = get_args(Model)
"""Names of the bundled models."""

WEIGHTS = Path(__file__).parent / "weights"


def folder_of(model: Model) -> Path:
    """Folder of a bundled model's weights. All share the autoencoder in the UNet's."""
    return WEIGHTS if model == "unet" else WEIGHTS / model


def shared_autoencoder(**options: Any) -> AutoencoderKL:
    """Load the autoencoder of all bundled models.

    Its latents are centred; Stable Diffusion 3 insists on being told so.
    """
    autoencoder: AutoencoderKL = AutoencoderKL.from_pretrained(
        WEIGHTS, subfolder="vae", shift_factor=0.0, **options
    )
    return autoencoder


@overload
def demo(
    model: Literal["unet", "contextual"] = "unet",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **components: Any,
) -> StableDiffusionPipeline: ...


@overload
def demo(
    model: Literal["mmdit"],
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **components: Any,
) -> StableDiffusion3Pipeline: ...


def demo(
    model: Model = "unet",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **components: Any,
) -> StableDiffusionPipeline | StableDiffusion3Pipeline:
    """Load a bundled Toyland model: a trained pipeline of 128 x 128 px, offline.

    Args:
        model: "unet", a Stable Diffusion whose text encoder never mixes words; "contextual", the
            same with a causal text encoder of two layers, as CLIP's is; "mmdit", a Stable
            Diffusion 3, whose text and image attend to each other in every block.
        device: where to put it; accelerate's choice by default.
        dtype: the weights' number format.
        components: `scheduler=`, `unet=` ... take the place of the bundled ones.

    Raises:
        ValueError: `model` is not one of these names.

    >>> image = demo()("a red car on a green lawn", num_inference_steps=20).images[0]
    """
    if model not in MODELS:
        raise ValueError(
            f"model={model!r} is not a bundled model; they are: {', '.join(MODELS)} "
            "(a device goes into device=)"
        )
    options = {"local_files_only": True, DTYPE: dtype}
    with no_bars():
        if model != "unet" and "vae" not in components:
            components["vae"] = shared_autoencoder(**options)
        if model == "mmdit":  # from_pretrained asks for the T5 that the folder goes without
            components = {"text_encoder_3": None, "tokenizer_3": None, **components}
        pipe: StableDiffusionPipeline | StableDiffusion3Pipeline
        pipe = DiffusionPipeline.from_pretrained(folder_of(model), **options, **components)
    return pipe.to(device or usual_device())
