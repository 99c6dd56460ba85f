"""Tiny pipelines of videos with random weights, built offline in no time."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AnimateDiffPipeline,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    MotionAdapter,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    UNetMotionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.tiny import sd1, text_encoder, tokenizer
from tests.tiny.assembling import assembled, multistep_flow, quiet, readers
from tests.tiny.classes import WanAnimateTransformer3DModel
from tests.tiny.crossed import gemma
from tests.tiny.transformers import sharpened, t5, t5_tokenizer


def wan_vae(seed: int = 0) -> AutoencoderKLWan:
    """Return an autoencoder that divides the sides by 8 and the frames, but the first, by 4."""
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def wan_model(cls: Any = WanTransformer3DModel, seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 32,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return sharpened(cls(**(shared | config)))


def wan(*, seed: int = 0, cls: Any = None, two: bool = False, **parts: Any) -> Any:
    """Return a pipeline of Wan 2.1's structure, or of 2.2's with its two denoisers."""
    second = {"transformer_2": wan_model(seed=seed + 1), "boundary_ratio": 0.8} if two else {}
    return assembled(
        cls or WanPipeline,
        wan_model(seed=seed),
        wan_vae(seed),
        t5(32, seed),
        parts,
        scheduler=multistep_flow(),
        **second,
    )


def wan_of_frame(*, seed: int = 0, two: bool = False) -> Any:
    """Return 2.2's pipeline that is given a frame: its two denoisers, or the one of 5B."""
    more: dict[str, Any] = {"expand_timesteps": True}
    if two:
        models = [wan_model(seed=seed + n, in_channels=12) for n in (0, 1)]
        more = {"transformer": models[0], "transformer_2": models[1], "boundary_ratio": 0.8}
    cls = unfixed("wan.pipeline_wan_i2v", "WanImageToVideoPipeline")
    return wan(seed=seed, cls=cls, image_encoder=None, image_processor=None, **more)


def of_image(name: str, cls: Any, model: Any, *, seed: int = 0, **more: Any) -> Any:
    """Return a pipeline of Wan's kin that is given a frame, which a vision encoder reads, too."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    side = {"height": 16, "width": 16}
    reader = CLIPImageProcessor(size=side, crop_size=side)
    config = {"in_channels": 12, "image_dim": 8, "added_kv_proj_dim": 24} | more
    return wan(
        cls=unfixed(name, cls),
        transformer=wan_model(model, seed, **config),
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=reader,
    )


def animate(*, seed: int = 0) -> Any:
    """Return Wan Animate's pipeline, which draws a video in segments."""
    sizes = {str(side): 8 for side in (4, 8, 16)}
    config = {
        "latent_channels": 4,
        "motion_encoder_channel_sizes": sizes,
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 8,
        "face_encoder_hidden_dim": 8,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 1,
    }
    names = "wan.pipeline_wan_animate", "WanAnimatePipeline"
    return of_image(*names, WanAnimateTransformer3DModel, seed=seed, **config)


def unfixed(module: str, cls: str) -> Any:
    """Return a pipeline's class; ftfy, which its module would clean prompts with, isn't here."""
    found = importlib.import_module(f"diffusers.pipelines.{module}")
    vars(found).setdefault("ftfy", SimpleNamespace(fix_text=lambda text: text))
    return getattr(found, cls)


def ltx(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    torch.manual_seed(seed)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()
    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=32,
    )
    return assembled(cls or LTXPipeline, sharpened(model), vae, t5(32, seed), parts)


def allegro(*, seed: int = 0, **parts: Any) -> Any:
    torch.manual_seed(seed)
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    model = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=6,
        sample_height=8,
        sample_frames=3,
        caption_channels=32,
    )
    return assembled(
        AllegroPipeline,
        sharpened(model),
        vae,
        t5(32, seed),
        parts,
        scheduler=DDIMScheduler(clip_sample=False),
    )


def sana_video(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    model = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        sample_size=8,
    )
    texts = readers((tok, gemma(tok, seed=seed)))
    return assembled(cls or SanaVideoPipeline, sharpened(model), wan_vae(seed), texts, parts)


def cogvideox(
    *, seed: int = 0, later: bool = False, cls: Any = None, channels: int = 4, **parts: Any
) -> Any:
    """Return a pipeline of CogVideoX's structure, or of 1.5's, whose patches hold two frames."""
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
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=6,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=24,
        patch_size_t=2 if later else None,
        use_rotary_positional_embeddings=later,
        patch_bias=not later,
    )
    return assembled(
        cls or CogVideoXPipeline,
        sharpened(model),
        vae,
        t5(32, seed),
        parts,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    """Return an autoencoder that divides the sides by 8 and the frames, but the first, by 4."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ).eval()


SEEN = {"template": "<image> the <|end_header_id|> old <|end_header_id|> {} "}
SEEN["template"] += "old dog old <|end_header_id|>"
SEEN |= {"crop_start": 5, "image_emb_start": 0, "image_emb_end": 4, "image_emb_len": 4}
"""A template that begins with a picture, of four positions; its last four are cut off, too."""


def hunyuan_video_of_image(*, seed: int = 0) -> Any:
    """Return a pipeline whose Llava reads a given image in front of the text; see ``SEEN``."""
    tok = t5_tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<image>", "<|end_header_id|>"]})
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    image = tok.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision,
        text_config=llama_config(tok),
        image_token_index=image,
        pad_token_id=0,
    )
    side = {"height": 16, "width": 16}
    return hunyuan_video(
        seed=seed,
        cls=HunyuanVideoImageToVideoPipeline,
        config={"in_channels": 9, "image_condition_type": "latent_concat"},
        tokenizer=tok,
        text_encoder=LlavaForConditionalGeneration(config).eval(),
        image_processor=CLIPImageProcessor(size=side, crop_size=side),
    )


def llama_config(tok: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tok),
        pad_token_id=0,
        initializer_range=0.3,
    )


def hunyuan_video(
    *, seed: int = 0, cls: Any = None, config: dict[str, Any] | None = None, **parts: Any
) -> Any:
    first, second = t5_tokenizer(), tokenizer()
    torch.manual_seed(seed)
    llama = LlamaModel(llama_config(first)).eval()
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 16,
        "pooled_projection_dim": 32,
        "rope_axes_dim": (4, 4, 4),
    }
    model = HunyuanVideoTransformer3DModel(**(sizes | (config or {})))
    texts = readers((first, llama), (second, text_encoder(second, seed=seed)))
    return assembled(cls or HunyuanVideoPipeline, sharpened(model), hunyuan_vae(), texts, parts)


def mochi(*, seed: int = 0, **parts: Any) -> Any:
    torch.manual_seed(seed)
    vae = AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=None,
        latents_std=None,
    ).eval()
    model = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=24,
    )
    return assembled(
        MochiPipeline,
        sharpened(model),
        vae,
        t5(32, seed),
        parts,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, invert_sigmas=True),
    )


def latte(*, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,  # a variance, too
        num_layers=2,
        cross_attention_dim=24,
        sample_size=8,
        patch_size=2,
        norm_type="ada_norm_single",
        caption_channels=32,
        video_length=3,
    )
    return assembled(
        LattePipeline,
        sharpened(model),
        sd1().vae,
        t5(32, seed),
        {},
        scheduler=DDIMScheduler(clip_sample=False),
    )


def animatediff(*, seed: int = 0) -> Any:
    """Return Stable Diffusion's tiny pipeline with motion modules between its layers."""
    pipe = sd1(seed=seed)
    torch.manual_seed(seed)
    config = pipe.unet.config
    adapter = MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_norm_num_groups=config.norm_num_groups,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    names = ("vae", "text_encoder", "tokenizer")
    parts = {name: pipe.components[name] for name in names}
    unet = UNetMotionModel.from_unet2d(pipe.unet, adapter)
    parts |= {"unet": unet, "motion_adapter": adapter}
    return quiet(AnimateDiffPipeline(**parts, scheduler=DDIMScheduler(clip_sample=False)))
