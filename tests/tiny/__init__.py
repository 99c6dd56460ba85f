"""Tiny pipelines with random weights: every family the tests need, built offline in no time.

An image of 32 x 32 pixels has latents of 16 x 16 (the VAE halves). SD1 and SD2 attend to text at
16 x 16 and 8 x 8 and, in the middle block, at 4 x 4; SDXL at 8 x 8, 4 x 4 and 4 x 4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

HERE = Path(__file__).parent

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "kdpm2": KDPM2DiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
}

SIDE = 32
"""Height and width of an image in pixels, where none are given."""

LATENT = 16
"""Height and width of its latents."""


def make_scheduler(name: str = "ddim", **config: Any) -> Any:
    """Return one of SCHEDULERS with Stable Diffusion's noise schedule."""
    shared: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    if name in ("ddim", "lcm"):
        shared |= {"clip_sample": False, "set_alpha_to_one": False}
    if name == "pndm":
        shared |= {"skip_prk_steps": True, "set_alpha_to_one": False}
    return SCHEDULERS[name](**(shared | config))


def tokenizer(**options: Any) -> CLIPTokenizer:
    """Return the CLIP tokenizer of the vocabulary in this folder."""
    vocab = json.loads((HERE / "vocab.json").read_text(encoding="utf-8"))
    lines = (HERE / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    return CLIPTokenizer(vocab=vocab, merges=merges, **({"model_max_length": 77} | options))


def text_encoder(tok: CLIPTokenizer, *, projection: bool = False, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        initializer_factor=5.0,  # so that words differ
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def vae(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16, 16),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    ).eval()


def unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """Return a UNet of SD1's shape; its attention is sharper than random weights leave it."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,  # diffusers' name for the number of heads
    }
    model = UNet2DConditionModel(**(shared | config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
                weight.mul_(2.0)
    return model


def _sd_parts(model: UNet2DConditionModel, scheduler: Any, seed: int) -> dict[str, Any]:
    tok = tokenizer()
    return {
        "vae": vae(seed),
        "text_encoder": text_encoder(tok, seed=seed),
        "tokenizer": tok,
        "unet": model,
        "scheduler": scheduler,
    }


_UNSAFE: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd1(scheduler: str = "ddim", *, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    """Return a pipeline of Stable Diffusion 1's structure: four heads everywhere."""
    parts = _sd_parts(unet(seed), make_scheduler(scheduler), seed) | _UNSAFE | parts
    return _quiet((cls or StableDiffusionPipeline)(**parts))


def sd1_img2img(scheduler: str = "ddim", **options: Any) -> Any:
    return sd1(scheduler, cls=StableDiffusionImg2ImgPipeline, **options)


def sd1_inpaint(scheduler: str = "ddim", **options: Any) -> Any:
    return sd1(scheduler, cls=StableDiffusionInpaintPipeline, **options)


def pag(scheduler: str = "ddim", *, layers: str | list[str] = "mid", **options: Any) -> Any:
    """Return a pipeline with perturbed-attention guidance; call it with ``pag_scale=3.0``."""
    return sd1(scheduler, cls=StableDiffusionPAGPipeline, pag_applied_layers=layers, **options)


def sd2(scheduler: str = "ddim", *, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    """Return SD 2's structure: v-prediction, attention upcast, linear projections, heads of 16."""
    model = unet(
        seed,
        attention_head_dim=(2, 4, 4),
        upcast_attention=True,
        use_linear_projection=True,
    )
    noise = make_scheduler(scheduler, prediction_type="v_prediction")
    return _quiet(
        (cls or StableDiffusionPipeline)(**(_sd_parts(model, noise, seed) | _UNSAFE | parts))
    )


def sdxl(scheduler: str = "euler", *, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    """Return SDXL's structure: two text encoders, no text at the finest grid."""
    model = unet(
        seed,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        cross_attention_dim=64,  # both encoders' features
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,  # sizes and crop, and the pooled text
    )
    # The second tokenizer pads with "!", as SDXL's does.
    first, second = tokenizer(), tokenizer(pad_token="!")
    made = {
        "vae": vae(seed),
        "text_encoder": text_encoder(first, seed=seed),
        "text_encoder_2": text_encoder(second, projection=True, seed=seed + 1),
        "tokenizer": first,
        "tokenizer_2": second,
        "unet": model,
        "scheduler": make_scheduler(scheduler),
        "add_watermarker": False,
    }
    return _quiet((cls or StableDiffusionXLPipeline)(**(made | parts)))


def sdxl_img2img(scheduler: str = "euler", **options: Any) -> Any:
    return sdxl(scheduler, cls=StableDiffusionXLImg2ImgPipeline, **options)


def sdxl_inpaint(scheduler: str = "euler", **options: Any) -> Any:
    return sdxl(scheduler, cls=StableDiffusionXLInpaintPipeline, **options)


def controlnet(scheduler: str = "ddim", *, seed: int = 0, **options: Any) -> Any:
    """Return SD1 with a ControlNet whose zero convolutions aren't zero: it has an effect."""
    model = unet(seed)
    net = ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(16, 32)).eval()
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                weight.normal_(std=0.05)
        net.controlnet_cond_embedding.conv_out.weight.normal_(std=0.05)
    return sd1(
        scheduler,
        seed=seed,
        cls=StableDiffusionControlNetPipeline,
        **({"unet": model, "controlnet": net} | options),
    )


def added_kv_unet(seed: int = 0) -> UNet2DConditionModel:
    """Return a UNet of DeepFloyd IF's kind: text keys and image keys in one attention call."""
    return unet(
        seed,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,  # here it is the width of a head
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
    )


IP_WIDTH = 24
"""The width of an image embedding that the synthetic IP-Adapter takes."""


def ip_adapter_weights(model: UNet2DConditionModel, seed: int = 7) -> dict[str, Any]:
    """Return a random IP-Adapter (four image tokens) in the layout of the published files."""
    rand = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rand) / shape[-1] ** 0.5

    width = model.config.cross_attention_dim
    channels = model.config.block_out_channels
    layers: dict[str, torch.Tensor] = {}
    number = 1
    for name in model.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        if name.startswith("mid_block"):
            hidden = channels[-1]
        elif name.startswith("up_blocks"):
            hidden = channels[::-1][int(name.split(".")[1])]
        else:
            hidden = channels[int(name.split(".")[1])]
        layers[f"{number}.to_k_ip.weight"] = noise(hidden, width)
        layers[f"{number}.to_v_ip.weight"] = noise(hidden, width)
        number += 2
    projection = {
        "proj.weight": noise(4 * width, IP_WIDTH),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": layers}


def load_ip_adapter(pipe: Any, seed: int = 7) -> list[torch.Tensor]:
    """Loads a random IP-Adapter and gives ``ip_adapter_image_embeds`` for a guided call.

    Call the pipeline with ``ip_adapter_image_embeds=`` what comes back; without guidance take
    ``[e[1:] for e in embeds]``.
    """
    return load_ip_adapters(pipe, [1], seed=seed)


def load_ip_adapters(
    pipe: Any, images: Sequence[int], guided: bool = True, seed: int = 7
) -> list[torch.Tensor]:
    """Loads a random IP-Adapter for each number of images, and gives their embeddings."""
    weights = [ip_adapter_weights(pipe.unet, seed + 2 * n) for n in range(len(images))]
    pipe.unet._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    found = []
    for n, count in enumerate(images):
        rand = torch.Generator().manual_seed(seed + 2 * n + 1)
        embeds = torch.randn(2, count, IP_WIDTH, generator=rand)
        embeds[0] = 0.0
        found.append(embeds if guided else embeds[1:])
    return found


def add_lora(pipe: Any, seed: int = 3, name: str = "tiny") -> None:
    """Adds a LoRA that has an effect to the attention projections of a pipeline's UNet."""
    from peft import LoraConfig

    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    pipe.unet.add_adapter(config, adapter_name=name)


def add_inversion(pipe: Any, token: str = "<toy>", vectors: int = 3, seed: int = 5) -> None:
    """Loads a random textual inversion of several vectors into an SD pipeline."""
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    rand = torch.Generator().manual_seed(seed)
    pipe.load_textual_inversion({token: torch.randn(vectors, width, generator=rand)}, token=token)
