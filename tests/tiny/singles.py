"""Tiny pipelines of transformers that hold text and image in one stream, built offline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
)
from torch import nn

from tests.tiny.chats import qwen3
from tests.tiny.joint import flow, quiet, qwen_tokenizer
from tests.tiny.transformers import sharpened


def flux2_vae(seed: int = 0) -> AutoencoderKLFlux2:
    torch.manual_seed(seed)
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()


def opened(model: nn.Module, *names: str) -> Any:
    """Return a model whose zeros, which would let no attention through, are random."""
    for name, weight in model.named_parameters():
        if name.startswith(names) and not weight.any():
            nn.init.normal_(weight, std=0.2)
    return sharpened(model)


def ernie_image(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(8, 4, 4),
    )
    made = {
        "transformer": opened(model, "adaLN_modulation", "final_linear"),
        "scheduler": flow(),
        "vae": flux2_vae(seed),
        "text_encoder": qwen3(tok, seed=seed),
        "tokenizer": tok,
    }
    return quiet(ErnieImagePipeline(**(made | parts)))
