"""Tiny pipelines of joint attention whose words stand in a chat, or at several places."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tests.tiny import text_encoder, tokenizer
from tests.tiny.assembling import LANGUAGE, SINGLES, VISION, assembled, readers
from tests.tiny.classes import (
    AdaptiveProjectedMixGuidance,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    needed,
)
from tests.tiny.joint import picture_marks, qwen_encoder, qwen_tokenizer, qwen_vae
from tests.tiny.transformers import flow_vae, flux2_vae, sharpened, t5_encoder, t5_tokenizer
from tests.tiny.videos import wan_vae


def qwen3(tok: Any, width: int = 16, seed: int = 0) -> Qwen3Model:
    torch.manual_seed(seed)
    config = Qwen3Config(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=len(tok),
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Qwen3Model(config).eval()


class Processor:
    """A tokenizer inside a processor, as FLUX.2 has it; messages are lists of parts."""

    def __init__(self, tok: Any) -> None:
        self.tokenizer = tok

    def apply_chat_template(
        self, chats: Any, tokenize: bool = True, add_generation_prompt: bool = False, **how: Any
    ) -> Any:
        if not tokenize:
            return self._text(chats)
        texts = [self._text(chat) for chat in chats]
        how.pop("return_dict")
        return self.tokenizer(texts, add_special_tokens=False, **how)

    def _text(self, chat: Any) -> str:
        return "".join(f"<|im_start|>{m['role']} {m['content'][0]['text']}<|im_end|>" for m in chat)


def flux2(*, seed: int = 0, klein: bool = False, side: str = "right", **parts: Any) -> Any:
    cls = needed(Flux2KleinPipeline if klein else Flux2Pipeline)
    tok = qwen_tokenizer()
    tok.padding_side = side
    torch.manual_seed(seed)
    model = Flux2Transformer2DModel(
        **SINGLES,
        in_channels=16,
        joint_attention_dim=32,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **({"guidance_embeds": False} if klein else {}),
    )
    pipe = assembled(
        cls,
        sharpened(model),
        flux2_vae(seed),
        readers((tok if klein else Processor(tok), qwen3(tok, seed=seed))),
        parts,
    )
    if not klein:
        pipe.system_message = "a system"
    return pipe


def ovis(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = OvisImageTransformer2DModel(
        **SINGLES,
        in_channels=16,
        out_channels=16,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    pipe = assembled(
        OvisImagePipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers((tok, qwen3(tok, seed=seed))),
        parts,
    )
    pipe.system_prompt = "the old dog: "
    pipe.user_prompt_begin_id = len(tok(f"<|im_start|>user\n{pipe.system_prompt}").input_ids) - 1
    # before diffusers 0.39 a call has no max_sequence_length for the text
    pipe.tokenizer_max_length = 40 + pipe.user_prompt_begin_id
    return pipe


def longcat(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = LongCatImageTransformer2DModel(
        **SINGLES,
        in_channels=64,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    pipe = assembled(
        LongCatImagePipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers((tok, qwen_encoder(tok, seed=seed))),
        parts,
        text_processor=None,
    )
    pipe.tokenizer_max_length = 24
    return pipe


class Compression(nn.Module):
    """An autoencoder that is only asked how small its latents are."""

    config = SimpleNamespace(spatial_compression_ratio=4, block_out_channels=(1, 1, 1))
    dtype = torch.float32
    device = torch.device("cpu")


def hunyuan_image(*, seed: int = 0, guided: bool = True, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    letters = ByT5Tokenizer(extra_ids=0)
    torch.manual_seed(seed)
    model = HunyuanImageTransformer2DModel(
        **SINGLES,
        in_channels=4,
        out_channels=4,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(8, 8),
    )
    pipe = assembled(
        HunyuanImagePipeline,
        sharpened(model),
        Compression(),
        readers((tok, qwen_encoder(tok, seed=seed)), (letters, t5_encoder(letters, 16, seed))),
        parts,
        guider=AdaptiveProjectedMixGuidance(guidance_scale=2.0, enabled=guided),
    )
    before = pipe.prompt_template_encode.partition("{}")[0]
    pipe.prompt_template_encode_start_idx = len(tok(before).input_ids)
    pipe.tokenizer_max_length = 40
    pipe.tokenizer_2_max_length = 24
    return pipe


def bria_fibo(*, seed: int = 0, **parts: Any) -> Any:
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    encoder = SmolLM3ForCausalLM(
        SmolLM3Config(
            **LANGUAGE,
            vocab_size=len(tok),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    ).eval()
    torch.manual_seed(seed)
    model = BriaFiboTransformer2DModel(
        **SINGLES,
        in_channels=4,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        text_encoder_dim=16,
    )
    return assembled(
        BriaFiboPipeline, sharpened(model), wan_vae(seed), readers((tok, encoder)), parts
    )


def qwen3_vl(tok: Any, seed: int = 0, layers: int = 3, cls: Any = Qwen3VLModel) -> Any:
    """Return a model of text and pictures; only as a whole does it know their marks."""
    torch.manual_seed(seed)
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": len(tok),
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default"},
    }
    vision = {
        **VISION,
        "deepstack_visual_indexes": [0],
    }
    marks = {} if cls is Qwen3VLModel else picture_marks(tok)
    return cls(Qwen3VLConfig(text_config=text, vision_config=vision, **marks)).eval()


def krea2(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )
    for block in model.transformer_blocks:  # zeros, which would let no attention through
        torch.nn.init.normal_(block.scale_shift_table, std=0.5)
    pipe = assembled(
        Krea2Pipeline,
        sharpened(model),
        qwen_vae(seed=seed),
        readers((tok, qwen3_vl(tok, seed))),
        parts,
        text_encoder_select_layers=(1, 2),
    )
    # numbers of the real tokenizer's tokens
    begin, end = pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix
    pipe.prompt_template_encode_start_idx = len(tok(begin).input_ids)
    pipe.prompt_template_encode_num_suffix_tokens = len(tok(end).input_ids)
    return pipe


def hidream(*, seed: int = 0, **parts: Any) -> Any:
    first, second, third, fourth = tokenizer(), tokenizer(), t5_tokenizer(), qwen_tokenizer()
    fourth.eos_token = "<|im_end|>"
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(
        LlamaConfig(
            **LANGUAGE,
            vocab_size=len(fourth),
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    ).eval()
    torch.manual_seed(seed)
    model = HiDreamImageTransformer2DModel(
        **SINGLES,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(32, 32),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    pipe = assembled(
        HiDreamImagePipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers(
            (first, text_encoder(first, projection=True, seed=seed)),
            (second, text_encoder(second, projection=True, seed=seed + 1)),
            (third, t5_encoder(third, 32, seed)),
            (fourth, llama),
        ),
        parts,
    )
    pipe.default_sample_size = 20  # it scales every size to the area of a square of so many latents
    return pipe
