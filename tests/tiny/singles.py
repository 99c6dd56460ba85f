"""Tiny pipelines of transformers that hold text and image in one stream, built offline."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.tiny.assembling import assembled, flow, quiet, readers
from tests.tiny.chats import Processor, qwen3, qwen3_vl
from tests.tiny.classes import (
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
)
from tests.tiny.joint import qwen_tokenizer, qwen_vae
from tests.tiny.transformers import flux2_vae, sharpened, t5_tokenizer


def opened(model: nn.Module, *names: str) -> Any:
    """Return a model whose zeros, which would let no attention through, are random."""
    for name, weight in model.named_parameters():
        if name.startswith(names) and not weight.any():
            nn.init.normal_(weight, std=0.2)
    return sharpened(model)


def ernie_image(*, seed: int = 0, **parts: Any) -> Any:
    tok = t5_tokenizer()
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
    return assembled(
        ErnieImagePipeline,
        opened(model, "adaLN_modulation", "final_linear"),
        flux2_vae(seed),
        readers((tok, qwen3(tok, seed=seed))),
        parts,
    )


class Reader(Processor):
    """A processor that tokenizes texts of a chat; the system message is a plain text."""

    def __call__(self, text: Any, **how: Any) -> Any:
        return self.tokenizer(text, **how)

    def _text(self, chat: Any) -> str:
        parts = ((m["role"], m["content"]) for m in chat)
        texts = ((role, one if isinstance(one, str) else one[0]["text"]) for role, one in parts)
        return "".join(f"<|im_start|>{role} {text}<|im_end|>" for role, text in texts)


def nucleus(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        mlp_ratio=8.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=1.0,
    )
    for name, weight in model.named_parameters():
        if ".experts." in name:  # whatever the memory holds
            nn.init.normal_(weight, std=0.2)
        if "norm_q" in name:  # as many keys would leave attention flat
            nn.init.constant_(weight, 3.0)
    made = {
        "transformer": sharpened(model),
        "scheduler": flow(),
        "vae": qwen_vae(seed=seed),
        "text_encoder": qwen3(tok, seed=seed),
        "processor": Reader(tok),
    }
    pipe = quiet(NucleusMoEImagePipeline(**(made | parts)))
    pipe.default_return_index = -2
    return pipe


class Chatter:
    """A tokenizer whose chats are lists of parts."""

    def __init__(self, tok: Any) -> None:
        self.tokenizer = tok

    def __call__(self, text: str, **how: Any) -> Any:
        return self.tokenizer(text, **how)

    def apply_chat_template(self, chat: Any, **how: Any) -> str:
        return Reader(self.tokenizer)._text(chat) + "<|im_start|>assistant"


def ideogram4(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()

    def model(n: int) -> Any:
        torch.manual_seed(n)
        return sharpened(
            Ideogram4Transformer2DModel(
                in_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                intermediate_size=32,
                adaln_dim=16,
                llm_features_dim=13 * 16,
                mrope_section=(4, 2, 2),
            )
        )

    return assembled(
        Ideogram4Pipeline,
        model(seed),
        flux2_vae(seed),
        readers(
            (Chatter(tok), qwen3_vl(tok, seed, layers=36))
        ),  # states of 13 of them are the text
        parts,
        unconditional_transformer=model(seed + 1),
    )
