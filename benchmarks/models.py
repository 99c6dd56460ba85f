"""The timed models: the bundled one, and untrained UNets of Stable Diffusion's exact shapes.

Imports nothing from xattn: peers load these in their own environments.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BUNDLED = Path(__file__).parent.parent / "xattn" / "toyland" / "weights"

SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,  # diffusers' name for the number of heads
    "cross_attention_dim": 768,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
"""Stable Diffusion 1.5's published configuration, 860 M parameters."""

SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""Stable Diffusion XL's, 2.6 B parameters."""


def unet(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Build an untrained UNet, its weights drawn directly in ``dtype``."""
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        model: UNet2DConditionModel = UNet2DConditionModel(**config).eval()
    finally:
        torch.set_default_dtype(usual)
    return model


def bundled() -> Any:
    """Load the bundled model, without progress bars."""
    pipe = StableDiffusionPipeline.from_pretrained(BUNDLED, local_files_only=True)
    pipe.to(torch.float32)  # the files are float16
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words() -> Any:
    """Build a CLIP tokenizer of whole words, enough for the timed prompts."""
    from_words = ["a", "red", "blue", "green", "car", "boat", "lawn", "on", "at", "night", "large"]
    vocabulary = [*map(chr, range(33, 127)), *(f"{chr(c)}</w>" for c in range(33, 127))]
    merges: list[str] = []
    for word in from_words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            if pair not in merges:
                merges.append(pair)
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.append(parts[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        ids = {text: i for i, text in enumerate(vocabulary)}
        (here / "vocab.json").write_text(json.dumps(ids))
        (here / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
        (here / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(here)


def sd15(dtype: torch.dtype = torch.float32) -> Any:
    """Build a pipeline around a UNet of Stable Diffusion 1.5's shape; the rest is small.

    Call it with ``output_type="latent"``: its autoencoder is a stub.
    """
    tokenizer = words()
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    stub = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=stub.to(dtype),
        text_encoder=CLIPTextModel(text).to(dtype).eval(),
        tokenizer=tokenizer,
        unet=unet(SD15, dtype),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def digest_of(pipe: Any) -> str:
    """Return a digest of all weights of a pipeline."""
    found = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, weight in part.state_dict().items():
                found.update(f"{name}.{key}".encode())
                found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
