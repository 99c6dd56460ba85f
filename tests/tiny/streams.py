"""Tiny pipelines whose sequences differ from row to row, and whose guidance runs in two passes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Model, Qwen2Tokenizer, Qwen3Config, Qwen3Model

from tests.tiny import text_encoder, tokenizer
from tests.tiny.assembling import LANGUAGE, assembled, readers
from tests.tiny.classes import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tests.tiny.crossed import gemma
from tests.tiny.joint import CHAT
from tests.tiny.transformers import flow_vae, sharpened, t5, t5_tokenizer
from tests.tiny.vocabulary import WORDS, byte_letters, whole


class Images(Qwen2Tokenizer):
    """A tokenizer that is called as a processor of texts and images is."""

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **how: Any) -> Any:
        return super().__call__(text, **how)


class Cleaner:
    """What PRX's pipeline cleans its prompts with."""

    def clean_text(self, text: str) -> str:
        return " ".join(text.lower().split())


def qwen_tokenizer() -> Images:
    """Return a byte-level tokenizer with a chat template, and the tiny vocabulary's words."""
    vocab, merges = whole(WORDS, byte_letters(), "Ġ")
    made = Images(vocab=vocab, merges=merges, model_max_length=2048)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT
    return made


def _qwen(kind: Any, config: Any, tok: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return kind(
        config(
            **LANGUAGE,
            vocab_size=len(tok),
            max_position_embeddings=2048,
        )
    ).eval()


def lumina2(*, seed: int = 0, **parts: Any) -> Any:
    tok = t5_tokenizer()
    torch.manual_seed(seed)
    model = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=8,
    )
    pipe = assembled(
        Lumina2Pipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers((tok, gemma(tok, seed=seed))),
        parts,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.system_prompt = "the old dog"  # the real one has a hundred tokens
    return pipe


def z_image(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 64, 64],
    )
    with torch.no_grad():
        model.x_pad_token.normal_()
        model.cap_pad_token.normal_()
    return assembled(
        ZImagePipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers((tok, _qwen(Qwen3Model, Qwen3Config, tok, seed))),
        parts,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def prx(*, seed: int = 0, **parts: Any) -> Any:
    torch.manual_seed(seed)
    model = PRXTransformer2DModel(
        patch_size=2,
        in_channels=4,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a base class, by diffusers itself
        pipe = assembled(
            PRXPipeline,
            sharpened(model),
            flow_vae(seed=seed),
            t5(16, seed, 32),
            parts,
            scheduler=FlowMatchEulerDiscreteScheduler(),
        )
    pipe.text_preprocessor = Cleaner()  # the real one needs ftfy
    return pipe


def kandinsky5(*, seed: int = 0, cls: Any = None, **parts: Any) -> Any:
    first, second = qwen_tokenizer(), tokenizer()
    torch.manual_seed(seed)
    model = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=32,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
    )
    pipe = assembled(
        cls or Kandinsky5T2IPipeline,
        sharpened(model),
        flow_vae(seed=seed),
        readers(
            (first, _qwen(Qwen2Model, Qwen2Config, first, seed)),
            (second, text_encoder(second, seed=seed)),
        ),
        parts,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.resolutions = [(64, 96)]
    before, _, _ = pipe.prompt_template.partition("{}")
    pipe.prompt_template_encode_start_idx = len(first(before).input_ids)  # the real one's is 40
    return pipe
