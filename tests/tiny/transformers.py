"""Tiny pipelines of transformers with random weights, built offline in no time.

An image of 48 x 32 pixels has latents of 24 x 16 (the VAE halves) and a grid of 12 x 8 patches.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.tiny import text_encoder, tokenizer
from tests.tiny.assembling import assembled, readers
from tests.tiny.classes import AutoencoderKLFlux2
from tests.tiny.vocabulary import WORDS

_SHARP = (".to_q.weight", ".to_k.weight", ".add_q_proj.weight", ".add_k_proj.weight")


def t5_tokenizer(length: int = 512) -> T5Tokenizer:
    """Return a T5 tokenizer: letters, and the tiny vocabulary's words in one piece each."""
    letters = [(chr(code), -8.0) for code in range(33, 127)]
    words = [(f"▁{word}", -2.0) for word in WORDS if word.isalpha() and len(word) > 1]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    return T5Tokenizer(
        vocab=[*special, *letters, *words, ("▁a", -2.0)], extra_ids=0, model_max_length=length
    )


def t5_encoder(tok: T5Tokenizer, width: int, seed: int = 0) -> T5EncoderModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tok),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
        initializer_factor=3.0,
    )
    return T5EncoderModel(config).eval()


def t5(width: int, seed: int = 0, length: int = 512) -> dict[str, Any]:
    """Return T5's tokenizer and encoder, as pipelines name a first one."""
    tok = t5_tokenizer(length)
    return readers((tok, t5_encoder(tok, width, seed)))


def flow_vae(channels: int = 4, seed: int = 0, levels: int = 2) -> AutoencoderKL:
    """Return an autoencoder that halves an image once less than it has levels."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16,) * levels,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


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


def sharpened(model: nn.Module) -> Any:
    """Return a model whose attention is sharper than random weights leave it.

    Flat attention would let wrong maps pass; norms and biases of 1 and 0 likewise.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(_SHARP):
                weight.mul_(2.0)
            elif "norm_q" in name or "norm_k" in name or "norm_added" in name:
                weight.mul_(2.0).add_(torch.randn_like(weight), alpha=0.2)
            elif weight.ndim == 1 and not weight.any():
                weight.normal_(std=0.05)
    return model.eval()


def sd3_transformer(seed: int = 0, **config: Any) -> SD3Transformer2DModel:
    """Return SD3.5's structure: the first of three blocks has attention of the image alone too."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 64,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 32,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    return sharpened(SD3Transformer2DModel(**(shared | config)))


def sd3(*, seed: int = 0, t5: bool = True, cls: Any = None, **parts: Any) -> Any:
    """Return a pipeline of SD3.5's structure, with T5 or without.

    Call it with ``max_sequence_length=24`` or so: T5's 256 positions cost more than the image.
    """
    first, second = tokenizer(), tokenizer(pad_token="!")
    third = t5_tokenizer() if t5 else None
    return assembled(
        cls or StableDiffusion3Pipeline,
        sd3_transformer(seed),
        flow_vae(seed=seed),
        readers(
            (first, text_encoder(first, projection=True, seed=seed)),
            (second, text_encoder(second, projection=True, seed=seed + 1)),
            (third, t5_encoder(third, 64, seed) if third else None),
        ),
        parts,
    )


def flux_transformer(seed: int = 0, **config: Any) -> FluxTransformer2DModel:
    """Return FLUX.1's structure: two double blocks, two single ones."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    return sharpened(FluxTransformer2DModel(**(shared | config)))


def flux(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    """Return a pipeline of FLUX.1's structure; words are T5's."""
    first, second = tokenizer(), t5_tokenizer()
    return assembled(
        cls or FluxPipeline,
        flux_transformer(seed),
        flow_vae(seed=seed),
        readers((first, text_encoder(first, seed=seed)), (second, t5_encoder(second, 32, seed))),
        parts,
    )
