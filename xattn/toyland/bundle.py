"""The bundled model as a pipeline: how training puts it together, and how :func:`demo` loads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline
from packaging.version import Version
from transformers import CLIPTokenizer

from xattn.devices import usual_device

from .denoiser import Denoiser, build_scheduler

WEIGHTS = Path(__file__).parent / "weights"

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
"""What `from_pretrained` calls the number format; diffusers 0.42 warns at the older name."""


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


@contextmanager
def no_bars() -> Iterator[None]:
    """Show no bars for parts that are read from the disk; those of a download stay."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()


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
