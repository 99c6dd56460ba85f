"""Tiny pipelines whose prompts can hold pictures, built offline."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.omnigen.processor_omnigen import (
    OmniGenCollator,
    OmniGenMultiModalProcessor,
)
from transformers import (
    BatchFeature,
    LlamaTokenizer,
    Qwen3VLForConditionalGeneration,
)

from tests.tiny.assembling import assembled, flow, quiet, readers
from tests.tiny.chats import qwen3_vl
from tests.tiny.classes import (
    AutoencoderKLQwenImage21,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    find,
)
from tests.tiny.joint import qwen, qwen_tokenizer
from tests.tiny.singles import opened
from tests.tiny.transformers import flow_vae, sharpened
from tests.tiny.videos import wan_vae
from tests.tiny.vocabulary import WORDS, whole

Qwen2VLImageProcessorPil = find("Qwen2VLImageProcessorPil", "transformers")
JoyImageEditImageProcessor = find(
    "JoyImageEditImageProcessor", "diffusers.pipelines.joyimage.image_processor"
)

_PAD = "<|image_pad|>"


class Pictures:
    """A processor that puts as many marks for a picture as the vision encoder makes of it."""

    def __init__(self, tok: Any, patch: int = 16) -> None:
        self.tokenizer = tok
        size = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
        self.image_processor = Qwen2VLImageProcessorPil(patch_size=patch, size=size)

    def __call__(self, text: Any, images: Any = None, **how: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        if images is None:
            return BatchFeature(dict(self.tokenizer(texts, **how)))
        seen = self.image_processor(images=images, return_tensors="pt")
        counts = iter([int(grid.prod()) // 4 for grid in seen["image_grid_thw"]])
        read = self.tokenizer([_expanded(each, counts) for each in texts], **how)
        types = (read["input_ids"] == self.tokenizer.convert_tokens_to_ids(_PAD)).long()
        return BatchFeature({**read, **seen, "mm_token_type_ids": types})

    def apply_chat_template(self, chat: Any, tokenize: bool = True, **how: Any) -> Any:
        parts = ((m["role"], m["content"]) for m in chat)
        texts = ((role, one if isinstance(one, str) else one[-1]["text"]) for role, one in parts)
        whole = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in texts)
        return [self.tokenizer(whole).input_ids] if tokenize else whole


def _expanded(text: str, counts: Any) -> str:
    first, *others = text.split(_PAD)
    return first + "".join(_PAD * next(counts) + other for other in others)


def qwen21(*, seed: int = 0, **parts: Any) -> Any:
    tok = qwen_tokenizer()
    torch.manual_seed(seed)
    model = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    made = {
        "transformer": sharpened(model),
        "scheduler": flow(),
        "vae": vae,
        "text_encoder": qwen3_vl(tok, seed, layers=2, cls=Qwen3VLForConditionalGeneration),
        "processor": Pictures(tok),
    }
    return quiet(QwenImage21Pipeline(**(made | parts)))


def qwen_edit(cls: Any) -> Any:
    """Build one of the Edit pipelines; it takes pictures at the size that its module asks for."""
    return qwen(cls=cls, processor=Pictures(qwen_tokenizer(), patch=14))


class Sizes(JoyImageEditImageProcessor):  # type: ignore[misc, valid-type]
    """A processor that takes pictures of a size of its own, far below the real one's."""

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        if height is None or width is None:
            return 32 * (image.height // 32), 32 * (image.width // 32)
        return height, width


def joy(*, seed: int = 0, plus: bool = False, side: str = "right", **parts: Any) -> Any:
    tok = qwen_tokenizer()
    tok.padding_side = side
    torch.manual_seed(seed)
    kind = JoyImageEditPlusTransformer3DModel if plus else JoyImageEditTransformer3DModel
    model = kind(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=16,
        mlp_width_ratio=1.0,
        num_layers=2,
        rope_dim_list=[8, 4, 4],
    )
    for name, weight in model.named_parameters():
        if "_norm." in name:  # ones would leave attention flat
            torch.nn.init.uniform_(weight, 1.0, 5.0)
    pipe = assembled(
        JoyImageEditPlusPipeline if plus else JoyImageEditPipeline,
        opened(model, "double_blocks"),
        wan_vae(seed),
        readers((tok, qwen3_vl(tok, seed, layers=2, cls=Qwen3VLForConditionalGeneration))),
        parts,
        processor=Pictures(tok),
    )
    scale = {"vae_scale_factor": pipe.vae_scale_factor_spatial}
    setattr(pipe, "image_processor" if plus else "vae_image_processor", Sizes(**scale))
    # the number of dropped tokens is a constant of the real tokenizer
    for name, template in pipe.prompt_template_encode.items():
        before = template.partition("{}")[0].partition("<|im_start|>user")[0]
        pipe.prompt_template_encode_start_idx[name] = len(tok(before).input_ids)
    return pipe


def llama_tokenizer() -> LlamaTokenizer:
    """Return a tokenizer that begins each text with a token and a space of its own."""
    letters = ["<unk>", "<s>", "</s>", "\u2581", *string.printable]
    vocab, merges = whole(WORDS, letters, "\u2581")
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, model_max_length=2048)


class OmniGenReader(OmniGenMultiModalProcessor):
    """The real processor of texts, with a transform of pictures that needs no torchvision."""

    def __init__(self, tok: Any) -> None:
        self.text_tokenizer = tok
        self.max_image_size = 1024
        self.collator = OmniGenCollator()

    def reset_max_image_size(self, max_image_size: int) -> None:
        self.max_image_size = max_image_size

    def process_image(self, image: Any) -> torch.Tensor:
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        return values[:, : image.height // 16 * 16, : image.width // 16 * 16] / 127.5 - 1


class OmniGen(OmniGenPipeline):
    """The pipeline with that processor: its own needs torchvision."""

    def __init__(self, transformer: Any, scheduler: Any, vae: Any, tokenizer: Any) -> None:
        DiffusionPipeline.__init__(self)
        self.register_modules(
            transformer=transformer, scheduler=scheduler, vae=vae, tokenizer=tokenizer
        )
        self.vae_scale_factor = 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=16)
        self.multimodal_processor = OmniGenReader(tokenizer)
        self.default_sample_size = 128


def omnigen(*, seed: int = 0, **parts: Any) -> Any:
    tok = llama_tokenizer()
    torch.manual_seed(seed)
    model = OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=2,
        vocab_size=len(tok),
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        pos_embed_max_size=24,
        time_step_dim=16,
    )
    made = {
        "transformer": sharpened(model),
        "scheduler": FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        "vae": flow_vae(seed=seed, levels=4),
        "tokenizer": tok,
    }
    return quiet(OmniGen(**(made | parts)))
