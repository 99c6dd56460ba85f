"""Tiny pipelines of further models of videos, built offline in no time."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLMagvit,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    ConsisIDTransformer3DModel,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # without OpenCV
from transformers import ByT5Tokenizer, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tests.tiny.joint import flow, quiet, qwen_encoder, qwen_tokenizer
from tests.tiny.transformers import sharpened, t5_encoder, t5_tokenizer


def hunyuan_video15(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    tok, letters = qwen_tokenizer(), ByT5Tokenizer(extra_ids=0)
    torch.manual_seed(seed)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8,) * 5,
        layers_per_block=1,
    ).eval()
    model = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=56,
    )
    made = {
        "transformer": sharpened(model),
        "scheduler": flow(),
        "vae": vae,
        "text_encoder": qwen_encoder(tok, seed=seed).model.language_model,
        "tokenizer": tok,
        "text_encoder_2": t5_encoder(letters, 16, seed),
        "tokenizer_2": letters,
        "guider": ClassifierFreeGuidance(guidance_scale=2.0),
    }
    pipe = quiet((cls or HunyuanVideo15Pipeline)(**(made | parts)))
    pipe.system_message = "the old dog"
    # a number of the real tokenizer's tokens
    before = f"<|im_start|>system\n{pipe.system_message}<|im_end|>\n<|im_start|>user\n"
    pipe.prompt_template_encode_start_idx = len(tok(before).input_ids)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 24, 16
    pipe.vision_num_semantic_tokens = 4
    return pipe


def hunyuan_video15_of_image(*, seed: int = 0, **parts: Any) -> Any:
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return hunyuan_video15(
        seed=seed,
        cls=HunyuanVideo15ImageToVideoPipeline,
        image_encoder=SiglipVisionModel(vision).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
        **parts,
    )


def easy_animate(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    tok.chat_template = tok.chat_template.replace("m.content }}", "m.content[0].text }}")
    torch.manual_seed(seed)
    vae = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=[4, 4, 4, 4],
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    model = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=16,
    )
    made = {
        "transformer": sharpened(model),
        "scheduler": flow(),
        "vae": vae,
        "text_encoder": qwen_encoder(tok, seed=seed),
        "tokenizer": tok,
    }
    return quiet(EasyAnimatePipeline(**(made | parts)))


def consisid(*, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline that is given a face; see ``face``."""
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    ).eval()
    model = ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=6,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=24,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=8,
        LFE_vit_dim=16,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_num_scale=2,
    )
    made = {
        "transformer": sharpened(model),
        "scheduler": CogVideoXDDIMScheduler(prediction_type="v_prediction"),
        "vae": vae,
        "text_encoder": t5_encoder(tok, 32, seed),
        "tokenizer": tok,
    }
    return quiet(ConsisIDPipeline(**(made | parts)))


def face() -> dict[str, Any]:
    """Return what a face's encoders say, as the pipeline of ConsisID is given it."""
    numbers = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 3, 16, generator=numbers) for _ in range(2)]
    return {"id_cond": torch.randn(1, 8, generator=numbers), "id_vit_hidden": states}
