"""The bundled model as a pipeline: how training puts it together, and how :func:`demo` loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from xattn.devices import DTYPE, no_bars, usual_device

from .denoiser import Denoiser, build_scheduler

WEIGHTS = Path(__file__).parent / "weights"


def assemble(
    autoencoder: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Put trained parts together to a Stable Diffusion pipeline of 128 x 128 px."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def demo(
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    **components: Any,
) -> StableDiffusionPipeline:
    """Load the bundled Toyland model: a trained Stable Diffusion of 128 x 128 px, offline.

    `device` is where to put it, by default what accelerate chooses. `components` (`scheduler=`,
    `unet=` ...) go to `from_pretrained` and take the place of the bundled ones.

    >>> image = demo()("a red car on a green lawn", num_inference_steps=20).images[0]
    """
    with no_bars():
        pipe: StableDiffusionPipeline = StableDiffusionPipeline.from_pretrained(
            WEIGHTS, local_files_only=True, **{DTYPE: dtype}, **components
        )
    return pipe.to(device or usual_device())
