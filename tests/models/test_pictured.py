"""Prompts that hold pictures: words stand beside them, and maps are the dense softmax's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage21
from PIL import Image
from torch import Tensor

import xattn
from tests.models.attending import dense, tokens_read
from tests.tiny import pictured
from xattn.edits.kinds import Replace

LAWN, BOAT = "a red car on a green lawn", "the blue boat"
OWN = 12 * 8
GRADIENT = Image.linear_gradient("L")
PICTURES = [GRADIENT.resize((64, 96)), GRADIENT.resize((64, 64)).convert("RGB")]


@pytest.fixture(scope="module")
def qwen() -> Any:
    return pictured.qwen21()


def draw(pipe: Any, prompt: Any = LAWN, **options: Any) -> Tensor:
    given = {"height": 192, "width": 128, "num_inference_steps": 2, "output_type": "latent"}
    images = pipe(prompt=prompt, generator=torch.Generator().manual_seed(0), **(given | options))
    assert isinstance(images.images, Tensor)
    return images.images


@pytest.mark.parametrize("kept", [True, False], ids=["kept keys", "all keys anew"])
def test_words_stand_behind_qwens_given_pictures(qwen: Any, kept: bool) -> None:
    options = {"image": PICTURES, "output_resolution": 96, "use_kv_cache": kept}
    names = {f"transformer_blocks.{n}.attn" for n in range(2)}
    with tokens_read(qwen.text_encoder) as given, dense(qwen.transformer, names) as truth:
        plain = draw(qwen, **options)
    ids, slot = given[0][0].tolist()[qwen._drop_idx :], qwen._img_token_id
    # where each position stands once its pictures are four latents each
    keys = [n + 3 * ids[:n].count(slot) for n in range(len(ids))]
    assert ids.count(slot) == 8 + 9
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(len(ids))}
    with xattn.record(qwen, **how) as trace:
        image = draw(qwen, **options)
    assert torch.equal(image, plain)
    for n, layer in enumerate(trace.run.layers):
        calls = torch.stack([each for each in truth[layer.name] if each.shape[2] == OWN])
        assert calls.shape[-1] == len(ids) + 3 * 17 + OWN
        right = calls[..., keys].transpose(-1, -2)
        torch.testing.assert_close(trace.run.maps(n).flatten(-2).double(), right, atol=1e-5, rtol=0)
    (prompt,) = trace.run.prompts
    assert [word.text for word in prompt.words] == LAWN.split()
    assert all(ids[token.position] == token.id for token in prompt.tokens)


def test_an_edit_between_given_pictures_is_refused(qwen: Any) -> None:
    options = {"height": 64, "width": 64, "output_type": "latent", "num_inference_steps": 2}
    given: dict[str, Any] = {"image": PICTURES[:1], "output_resolution": 96, **options}
    with (
        xattn.editing(qwen, LAWN, Replace("red", "blue")) as session,
        pytest.raises(RuntimeError, match="draw from a prompt without pictures"),
    ):
        qwen(prompt=session.prompts, **given)


def test_the_images_affinity_is_what_it_gives_to_its_own_keys(qwen: Any) -> None:
    names = {f"transformer_blocks.{n}.attn" for n in range(2)}
    with dense(qwen.transformer, names) as truth:
        draw(qwen)
    with xattn.record(qwen, affinity=True) as trace:
        draw(qwen)
    calls = [each for found in truth.values() for each in found if each.shape[2] == OWN]
    right = torch.stack(calls)[..., -OWN:].mean((0, 2))[0]
    assert trace.run.affinity is not None
    found = trace.run.affinity[0].reshape(OWN, OWN).double()
    torch.testing.assert_close(found, right / right.sum(-1, keepdim=True), atol=1e-3, rtol=0)


def test_a_text_that_reads_itself_alone_gives_nothing_to_places(qwen: Any) -> None:
    with (
        pytest.raises(ValueError, match="direction='text' needs joint attention"),
        xattn.record(qwen, direction="text"),
    ):
        pass


def test_flex_attention_is_refused(qwen: Any) -> None:
    own = dict(qwen.transformer.attn_processors)
    flex = transformer_qwenimage21.QwenImage21FlexAttnProcessor
    qwen.transformer.set_attn_processor(flex())
    try:
        with (
            pytest.raises(TypeError, match="FlexAttnProcessor computes attention in flex_att"),
            xattn.record(qwen),
        ):
            draw(qwen)
    finally:
        qwen.transformer.set_attn_processor(own)
