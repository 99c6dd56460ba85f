"""Tiny pipelines of further models of videos, built offline in no time."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # without OpenCV
from torch import nn
from transformers import ByT5Tokenizer, SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tests.tiny import text_encoder, tokenizer
from tests.tiny.assembling import assembled, multistep_flow, quiet, readers
from tests.tiny.classes import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Video,
    AutoencoderKLMagvit,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    ConsisIDTransformer3DModel,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    Lacking,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
    find,
)
from tests.tiny.crossed import gemma
from tests.tiny.joint import qwen_encoder, qwen_tokenizer
from tests.tiny.transformers import sharpened, t5, t5_encoder, t5_tokenizer
from tests.tiny.videos import hunyuan_vae, unfixed, wan_vae

LTX2VideoCondition = find("LTX2VideoCondition", "diffusers.pipelines.ltx2.pipeline_ltx2_condition")
LTX2TextConnectors = find("LTX2TextConnectors", "diffusers.pipelines.ltx2")

WAN_SIZES: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 32, "freq_dim": 16, "ffn_dim": 16, "num_layers": 2,
}  # fmt: skip
"""Of the models built like Wan."""


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
    pipe = assembled(
        cls or HunyuanVideo15Pipeline,
        sharpened(model),
        vae,
        readers(
            (tok, qwen_encoder(tok, seed=seed).model.language_model),
            (letters, t5_encoder(letters, 16, seed)),
        ),
        parts,
        guider=ClassifierFreeGuidance(guidance_scale=2.0),
    )
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
    return assembled(
        EasyAnimatePipeline,
        sharpened(model),
        vae,
        readers((tok, qwen_encoder(tok, seed=seed))),
        parts,
    )


def consisid(*, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline that is given a face; see ``face``."""
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
    return assembled(
        ConsisIDPipeline,
        sharpened(model),
        vae,
        t5(32, seed),
        parts,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def face() -> dict[str, Any]:
    """Return what a face's encoders say, as the pipeline of ConsisID is given it."""
    numbers = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 3, 16, generator=numbers) for _ in range(2)]
    return {"id_cond": torch.randn(1, 8, generator=numbers), "id_vit_hidden": states}


class Sound(nn.Module):
    """An autoencoder of sounds that is only asked how small its latents are."""

    config = SimpleNamespace(sample_rate=160, mel_hop_length=10, mel_bins=8, latent_channels=2)
    mel_compression_ratio = temporal_compression_ratio = 4
    latent_hop_length = 40
    latents_mean, latents_std = torch.zeros(4), torch.ones(4)
    dtype = torch.float32
    device = torch.device("cpu")


def ltx2_vae(seed: int = 0) -> Any:
    """Return an autoencoder that divides the sides, and the frames but the first, by 4."""
    torch.manual_seed(seed)
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        patch_size=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    ).eval()


def sana_wm(*, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline that is given a frame and a camera's path."""
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    model = SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        chunk_plucker_channels=24,  # 6 of each frame that a latent one stands for
        caption_channels=8,
        mlp_ratio=1.0,
    )
    return assembled(
        SanaWMPipeline,
        sharpened(model),
        ltx2_vae(seed),
        readers((tok, gemma(tok, seed=seed))),
        parts,
    )


def ltx2(*, seed: int = 0, cls: Any = None, registers: int | None = 8, **parts: Any) -> Any:
    """Return a pipeline of LTX-2's structure; see ``ltx2_vae``."""
    tok = t5_tokenizer()
    vae = ltx2_vae(seed)
    connectors = LTX2TextConnectors(
        caption_channels=8,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=registers,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=registers,
    ).eval()
    model = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        vae_scale_factors=(4, 4, 4),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=8,
        perturbed_attn=True,
    )
    return assembled(
        cls or LTX2Pipeline,
        sharpened(model),
        vae,
        readers((tok, gemma(tok, seed=seed))),
        parts,
        audio_vae=Sound(),
        connectors=connectors,
        vocoder=None,
    )


def first_frame(picture: Any) -> dict[str, Any]:
    """Return a given first frame as LTX-2's pipeline takes it, without a library of videos."""
    compressed = "image_crf" in inspect.signature(LTX2ImageToVideoPipeline.__call__).parameters
    return {"image": picture} | ({"image_crf": 0} if compressed else {})


def later_frame(picture: Any) -> dict[str, Any]:
    """Return a given later frame as LTX-2's pipeline takes it."""
    if isinstance(LTX2VideoCondition, Lacking):
        return {}
    compressed = "crf" in inspect.signature(LTX2VideoCondition).parameters
    more = {"crf": 0} if compressed else {}
    return {"conditions": LTX2VideoCondition(picture, index=1, **more)}


class Harmless(nn.Module):
    """A check of safety that finds nothing; the real one is a library and its weights."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, text: str) -> bool:
        return True


def cosmos(cls: Any = CosmosTextToWorldPipeline, *, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline of Cosmos 1; see ``cosmos2`` and ``cosmos25``."""
    torch.manual_seed(seed)
    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(4, 4, 4, 4),
        decode_block_out_channels=(4, 4, 4, 4),
        attention_resolutions=(),
        num_layers=1,
        temporal_compression_ratio=4,
    ).eval()
    return assembled(
        cls,
        cosmos_model(seed),
        vae,
        t5(32, seed),
        parts,
        scheduler=EDMEulerScheduler(),
        safety_checker=Harmless(),
    )


def cosmos_model(seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "text_embed_dim": 32,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "concat_padding_mask": False,  # which torchvision resizes
        "extra_pos_embed_type": None,
    }
    return sharpened(CosmosTransformer3DModel(**(shared | config)))


def cosmos2(**parts: Any) -> Any:
    """Return a pipeline of images."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    noise = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 1.0}
    scheduler.register_to_config(**noise, final_sigmas_type="sigma_min")
    return cosmos(Cosmos2TextToImagePipeline, scheduler=scheduler, vae=wan_vae(), **parts)


def cosmos25(*, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline of 2.5, whose text is all states of a vision and language model."""
    tok = qwen_tokenizer()
    tok.chat_template = tok.chat_template.replace("m.content }}", "m.content[0].text }}")
    return cosmos(
        Cosmos2_5_PredictBasePipeline,
        seed=seed,
        transformer=cosmos_model(seed, in_channels=5),
        scheduler=multistep_flow(),
        vae=wan_vae(seed),
        text_encoder=qwen_encoder(tok, seed=seed),
        tokenizer=tok,
        **parts,
    )


class Waves(nn.Module):
    """A tokenizer of sounds that is asked for their length, and decodes silence."""

    config = SimpleNamespace(sampling_rate=160)
    _hop_size = 10

    def __init__(self) -> None:
        super().__init__()
        self.silence = nn.Parameter(torch.zeros(1))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.silence.expand(1, 1, 1)


def cosmos3(*, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline without a text encoder, whose queries share heads of keys."""
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = Cosmos3OmniTransformer(
        head_dim=12,
        hidden_size=24,
        intermediate_size=16,
        latent_channel=4,
        patch_latent_dim=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        rope_axes_dim=(2, 2, 2),
        sound_dim=4,
        sound_gen=True,
        vocab_size=len(tok),
    )
    made = {
        "transformer": sharpened(model),
        "text_tokenizer": tok,
        "vae": wan_vae(seed),
        "scheduler": multistep_flow(),
        "sound_tokenizer": Waves(),
        "enable_safety_checker": False,
    }
    return quiet(Cosmos3OmniPipeline(**(made | parts)))


def helios(*, seed: int = 0, pyramid: bool = False, **config: Any) -> Any:
    """Return Helios' pipeline, which draws a video in windows, or the one in stages of each."""
    torch.manual_seed(seed)
    model = HeliosTransformer3DModel(
        **WAN_SIZES,
        rope_dim=(4, 4, 4),
        **config,
    )
    name = "HeliosPyramidPipeline" if pyramid else "HeliosPipeline"
    cls = unfixed("helios.pipeline_helios" + "_pyramid" * pyramid, name)
    return assembled(
        cls,
        sharpened(model),
        wan_vae(seed),
        t5(32, seed),
        {},
        scheduler=HeliosScheduler(stages=2 if pyramid else 1),
    )


def anyflow(*, seed: int = 0, chunks: tuple[int, ...] = (), **parts: Any) -> Any:
    """Return AnyFlow's pipeline, or FAR's, whose chunks have so many frames each."""
    torch.manual_seed(seed)
    far: dict[str, Any] = {"chunk_partition": chunks, "compressed_patch_size": (1, 4, 4)}
    kind = AnyFlowFARTransformer3DModel if chunks else AnyFlowTransformer3DModel
    model = kind(
        **WAN_SIZES,
        rope_max_seq_len=32,
        **(far if chunks else {}),
    )
    return assembled(
        AnyFlowFARPipeline if chunks else AnyFlowPipeline,
        sharpened(model),
        wan_vae(seed),
        t5(32, seed),
        parts,
        scheduler=FlowMapEulerDiscreteScheduler(),
    )


class Reader:
    """A processor that reads texts alone."""

    def __init__(self, tok: Any) -> None:
        self.tokenizer = tok

    def __call__(self, text: Any, images: None = None, videos: None = None, **how: Any) -> Any:
        return self.tokenizer(text, **how)


def kandinsky6(*, seed: int = 0, pictured: bool = False, **parts: Any) -> Any:
    first, second = qwen_tokenizer(), tokenizer()
    torch.manual_seed(seed)
    model = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        visual_token_type_num_embeddings=2 * pictured,
        in_text_dim=16,
        in_text_dim2=32,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4,
    )
    for name, weight in model.named_parameters():
        if name.endswith(("to_query.weight", "to_key.weight")):  # many keys leave attention flat
            nn.init.normal_(weight, std=1.0)
        elif name.endswith("query_norm.weight"):
            nn.init.constant_(weight, 3.0)
    return assembled(
        Kandinsky6TI2VAPipeline,
        sharpened(model),
        hunyuan_vae(),
        readers(
            (Reader(first), qwen_encoder(first, seed=seed)),
            (second, text_encoder(second, seed=seed)),
        ),
        parts,
        audio_vae=Sound(),
        vocoder=Sound(),
    )


def motif_video(*, seed: int = 0, **parts: Any) -> Any:
    """Return a pipeline of a double block, a single one, and one that reads no text."""
    torch.manual_seed(seed)
    model = MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=2,
        num_decoder_layers=1,
        text_embed_dim=32,
        rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return assembled(
        MotifVideoPipeline,
        sharpened(model),
        wan_vae(seed),
        t5(32, seed),
        parts,
        guider=ClassifierFreeGuidance(guidance_scale=2.0),
    )
