"""Tiny pipelines of transformers whose text has cross-attention of its own, built offline."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer, Gemma2Config, Gemma2Model

from tests.tiny.assembling import assembled, readers
from tests.tiny.classes import (
    AutoencoderDC,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from tests.tiny.transformers import flow_vae, sharpened, t5, t5_encoder, t5_tokenizer
from tests.tiny.vocabulary import WORDS


def bert_tokenizer() -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word.lower() for word in WORDS if word.isalpha()} | {"a"})
    return BertTokenizer(vocab={word: i for i, word in enumerate([*special, *words])})


def bert_encoder(tok: BertTokenizer, width: int, seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tok),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
        max_position_embeddings=77,
    )
    return BertModel(config).eval()


def gemma(tok: Any, width: int = 8, seed: int = 0) -> Gemma2Model:
    torch.manual_seed(seed)
    config = Gemma2Config(
        head_dim=4,
        hidden_size=width,
        intermediate_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        sliding_window=2,
        vocab_size=len(tok),
        initializer_range=0.3,
    )
    return Gemma2Model(config).eval()


def pixart(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    torch.manual_seed(seed)
    model = PixArtTransformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=32,
        norm_type="ada_norm_single",
        activation_fn="gelu-approximate",
        use_additional_conditions=False,
    )
    return assembled(
        cls or PixArtSigmaPipeline,
        sharpened(model),
        flow_vae(seed=seed),
        t5(32, seed),
        parts,
        scheduler=DPMSolverMultistepScheduler(),
    )


def sana(*, seed: int = 0, sprint: bool = False, scale: float = 1.0, **parts: Any) -> Any:
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()
    torch.manual_seed(seed)
    model = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=32,
        timestep_scale=scale,
        guidance_embeds=sprint,
        qk_norm="rms_norm_across_heads" if sprint else None,
    )
    flow = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return assembled(
        SanaSprintPipeline if sprint else SanaPipeline,
        sharpened(model),
        vae,
        readers((tok, gemma(tok, seed=seed))),
        parts,
        scheduler=SCMScheduler() if sprint else flow,
    )


def hunyuan_dit(*, seed: int = 0, **parts: Any) -> Any:
    first, second = bert_tokenizer(), t5_tokenizer()
    torch.manual_seed(seed)
    model = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=4,
        hidden_size=16,
        activation_fn="gelu-approximate",
    )
    return assembled(
        HunyuanDiTPipeline,
        sharpened(model),
        flow_vae(seed=seed, levels=4),
        readers((first, bert_encoder(first, 16, seed)), (second, t5_encoder(second, 16, seed))),
        parts,
        scheduler=DDPMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def lumina_next(*, seed: int = 0, **parts: Any) -> Any:
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    model = LuminaNextDiT2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=1.0,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=8,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate"):
                weight.fill_(1.0)
    return assembled(
        LuminaPipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers((tok, gemma(tok, seed=seed))),
        parts,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
