"""The bundled models: how each is built, on which scenes it trains, and how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from xattn.toyland.bundle import WEIGHTS, Model, folder_of
from xattn.toyland.vocabulary import LENGTH, build_tokenizer

from .denoiser import Denoiser, build_contextual_encoder, build_scheduler, build_text_encoder
from .loop import Schedule, Trainable
from .transformer import PROMPT_LENGTH, Transformer, build_flow_scheduler


@dataclass(frozen=True)
class Recipe:
    """One model: `length` is how many positions its prompts have.

    `mixed` scenes are easy and hard ones in turn. A model that does not `train_autoencoder` takes
    the bundled one. One that is `taught` learns from the bundled UNets' predictions.
    """

    build: Callable[[], Trainable]
    assemble: Callable[[AutoencoderKL, Any], Any]
    length: int
    schedule: Schedule
    mixed: bool = True
    train_autoencoder: bool = False
    taught: bool = False


def build_base() -> Denoiser:
    """Build the untrained UNet with the text encoder that mixes nothing."""
    return Denoiser(build_text_encoder(build_tokenizer()))


def build_contextual() -> Denoiser:
    """Build the untrained UNet with a causal text encoder."""
    return Denoiser(build_contextual_encoder(build_tokenizer()))


def build_mmdit() -> Transformer:
    """Build the untrained joint-attention model."""
    return Transformer(prompt_tokenizer())


def prompt_tokenizer() -> CLIPTokenizer:
    """Build Toyland's tokenizer with the joint-attention model's shorter prompts."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = PROMPT_LENGTH
    return tokenizer


@torch.no_grad()
def start_from_bundled(model: Denoiser) -> None:
    """Copy the bundled UNet, and its encoder's embeddings and last norm, into the model.

    The layers of a contextual encoder, which the bundled one lacks, stay as they were built.
    """
    unet = type(model.unet).from_pretrained(WEIGHTS / "unet", local_files_only=True)
    model.unet.load_state_dict(unet.float().state_dict())
    encoder = CLIPTextModel.from_pretrained(WEIGHTS / "text_encoder", local_files_only=True)
    own = model.text_encoder.state_dict()
    model.text_encoder.load_state_dict({**own, **encoder.float().state_dict()})


@torch.no_grad()
def go_on_from_bundled(model: Trainable, name: Model) -> None:
    """Copy the weights bundled under a model's name into it, to train them further."""
    for part, module in model.named_children():
        kind: Any = type(module)
        bundled = kind.from_pretrained(folder_of(name) / part, local_files_only=True)
        module.load_state_dict(bundled.float().state_dict())


def assemble(autoencoder: AutoencoderKL, model: Denoiser) -> StableDiffusionPipeline:
    """Put trained parts together to a Stable Diffusion pipeline of 128 x 128 px."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.text_encoder,
        tokenizer=build_tokenizer(),
        unet=model.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def assemble_joint(autoencoder: AutoencoderKL, model: Transformer) -> StableDiffusion3Pipeline:
    """Put trained parts together to a Stable Diffusion 3 pipeline without a T5."""
    return StableDiffusion3Pipeline(
        vae=autoencoder,
        text_encoder=model.text_encoder,
        text_encoder_2=model.text_encoder_2,
        text_encoder_3=None,
        tokenizer=prompt_tokenizer(),
        tokenizer_2=prompt_tokenizer(),
        tokenizer_3=None,
        transformer=model.transformer,
        scheduler=build_flow_scheduler(),
    )


RECIPES: Final[dict[Model, Recipe]] = {
    "unet": Recipe(
        build_base,
        assemble,
        LENGTH,
        Schedule(steps=8000),
        mixed=False,
        train_autoencoder=True,
    ),
    "contextual": Recipe(build_contextual, assemble, LENGTH, Schedule(steps=3000, peak_rate=8e-4)),
    "mmdit": Recipe(
        build_mmdit,
        assemble_joint,
        PROMPT_LENGTH,
        Schedule(steps=12000, batch=32, peak_rate=1.5e-3, warmup=100, decay=0.999),
        taught=True,
    ),
}
"""Each bundled model's recipe."""
