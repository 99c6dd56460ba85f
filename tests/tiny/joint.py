"""Tiny pipelines of transformers with joint attention, built offline in no time.

Their autoencoders halve an image once, so 48 x 32 pixels are latents of 24 x 16 and a grid of
12 x 8 packed positions or patches.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKLQwenImage,
    BriaPipeline,
    BriaTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    GlmConfig,
    GlmModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny.assembling import LANGUAGE, SINGLES, VISION, assembled, readers
from tests.tiny.transformers import flow_vae, sharpened, t5, t5_tokenizer
from tests.tiny.vocabulary import WORDS, byte_letters, whole

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level tokenizer: the tiny vocabulary's words in one piece, and chat marks."""
    vocab, merges = whole(["system", "user", "assistant", *WORDS], byte_letters(), "Ġ")
    tok = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=2048)
    tok.add_special_tokens({"additional_special_tokens": [*MARKS, "<|video_pad|>"]})
    tok.chat_template = CHAT
    return tok


def picture_marks(tok: Any) -> dict[str, int]:
    """Return the ids of a tokenizer's marks of pictures, as a config names them."""
    marks = {"image": "image_pad", "video": "video_pad"}
    marks |= {name: name for name in ("vision_start", "vision_end")}
    return {f"{k}_token_id": tok.convert_tokens_to_ids(f"<|{m}|>") for k, m in marks.items()}


def qwen_encoder(tok: Any, width: int = 16, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(seed)
    text = LANGUAGE | {
        "hidden_size": width,
        "vocab_size": len(tok),
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = VISION | {"out_hidden_size": width, "fullatt_block_indexes": [0]}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        hidden_size=width,
        vocab_size=len(tok),
        **picture_marks(tok),
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen_vae(channels: int = 4, seed: int = 0) -> AutoencoderKLQwenImage:
    torch.manual_seed(seed)
    return AutoencoderKLQwenImage(
        base_dim=channels * 6,
        z_dim=channels,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    ).eval()


def qwen(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = assembled(
        cls or QwenImagePipeline,
        sharpened(model),
        qwen_vae(seed=seed),
        readers((tok, qwen_encoder(tok, seed=seed))),
        parts,
    )
    # the number of dropped tokens is a constant of the real tokenizer
    before = pipe.prompt_template_encode.partition("{}")[0]
    pipe.prompt_template_encode_start_idx = len(tok(before).input_ids)
    return pipe


def chroma(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    torch.manual_seed(seed)
    model = ChromaTransformer2DModel(
        **SINGLES,
        patch_size=1,
        in_channels=16,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return assembled(
        cls or ChromaPipeline, sharpened(model), flow_vae(seed=seed), t5(32, seed), parts
    )


def bria(*, seed: int = 0, **parts: Any) -> Any:
    torch.manual_seed(seed)
    model = BriaTransformer2DModel(
        **SINGLES,
        patch_size=1,
        in_channels=16,
        joint_attention_dim=32,
        pooled_projection_dim=None,
        axes_dims_rope=[4, 4, 8],
    )
    return assembled(BriaPipeline, sharpened(model), flow_vae(seed=seed), t5(32, seed), parts)


def aura_flow(*, seed: int = 0, **parts: Any) -> Any:
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    model = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=len(tok),
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
        initializer_factor=3.0,
    )
    return assembled(
        AuraFlowPipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers((tok, UMT5EncoderModel(config).eval())),
        parts,
    )


def cogview3(*, seed: int = 0, **parts: Any) -> Any:
    torch.manual_seed(seed)
    model = CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=32,
        sample_size=16,
    )
    return assembled(
        CogView3PlusPipeline,
        sharpened(model),
        flow_vae(seed=seed),
        t5(32, seed),
        parts,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def cogview4(*, seed: int = 0, side: str = "left", **parts: Any) -> Any:
    tok = t5_tokenizer()
    tok.padding_side = side
    torch.manual_seed(seed)
    encoder = GlmModel(
        GlmConfig(
            hidden_size=32,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=len(tok),
            pad_token_id=0,
            eos_token_id=1,
            initializer_range=0.3,
        )
    ).eval()
    torch.manual_seed(seed)
    model = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    )
    return assembled(
        CogView4Pipeline, sharpened(model), flow_vae(seed=seed), readers((tok, encoder)), parts
    )
