"""An image prompt's own attention: exact, beside the words' maps, which stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.models.attention_processor import (
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from torch import Tensor, nn

import xattn
from tests import tiny
from tests.helpers import CAR, OTHER, SIDE, assert_restored, draw
from tests.session.test_machines import offload_groups
from tests.tiny import transformers

EVERY = {"keep": ("step", "layer", "head"), "dtype": torch.float32}


class Dense(nn.Module):
    """Compute densely what image tokens are given and give; then run the model's own."""

    def __init__(self, name: str, inner: Any, seen: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
        super().__init__()
        self.name, self.inner, self.seen = name, inner, seen

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
        ip_adapter_masks: Any = None,
    ) -> Any:
        text, images = encoder_hidden_states
        given = [_softmax(attn, hidden_states, attn.to_k(text)) @ _heads(attn, attn.to_v(text))]
        tokens = []
        for n, states in enumerate(images):
            scale = self.inner.scale[n]
            parts = [states] if ip_adapter_masks is None else list(states.split(1, 1))
            for i, part in enumerate(parts):
                flat = part.flatten(1, 2)
                probs = _softmax(attn, hidden_states, self.inner.to_k_ip[n](flat))
                values = _heads(attn, self.inner.to_v_ip[n](flat))
                own = scale[i] if isinstance(scale, list) else scale
                if ip_adapter_masks is not None:
                    mask = ip_adapter_masks[n][:, i]
                    size = IPAdapterMaskProcessor.downsample(mask, 1, probs.shape[2], 1)
                    probs = probs * size[:, None]
                probs = probs * (own != 0)
                tokens.append(probs)
                each = probs.split(part.shape[2], -1), values.split(part.shape[2], 2)
                given += [own * p @ v for p, v in zip(*each, strict=True)]
        norms = torch.stack(
            [each.norm(dim=-1) for each in given], 2
        )  # (rows, heads, 1 + n, queries)
        shares = (norms / norms.sum(2, keepdim=True))[:, :, 1:]
        kept = (torch.cat(tokens, -1).transpose(-1, -2), shares)
        self.seen.setdefault(self.name, []).append(kept)
        own = {} if ip_adapter_masks is None else {"ip_adapter_masks": ip_adapter_masks}
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, **own)


def _heads(attn: Any, states: Tensor) -> Tensor:
    return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _softmax(attn: Any, hidden: Tensor, keys: Tensor) -> Tensor:
    queries, keys = _heads(attn, attn.to_q(hidden)), _heads(attn, keys)
    logits = torch.einsum("bhqd,bhkd->bhqk", queries, keys) / queries.shape[-1] ** 0.5
    weights = (logits - logits.amax(-1, True)).exp()
    return weights / weights.sum(-1, True)


def dense(pipe: Any, **options: Any) -> dict[str, list[tuple[Tensor, Tensor]]]:
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(
        {
            name: Dense(name.removesuffix(".processor"), one, seen)
            if isinstance(one, IPAdapterAttnProcessor2_0)
            else one
            for name, one in before.items()
        }
    )
    draw(pipe, **options)
    pipe.unet.set_attn_processor(before)
    return seen


def regions(count: int) -> list[Tensor]:
    """Masks of some images, of which neighbours share a corner of the picture."""
    masks = torch.zeros(1, count, SIDE, SIDE)
    for n in range(count):
        masks[:, n, : SIDE // 2 + 4 * n, n * SIDE // 2 :] = 1
    return [masks]


CASES: dict[str, tuple[list[int], Any, dict[str, Any]]] = {
    "two prompts": ([1], 0.5, {"prompt": [CAR, OTHER]}),
    "two adapters, unguided": ([2, 1], [0.7, 0.2], {"guidance_scale": 1.0}),
    "regions": ([2], [[0.7, 0.3]], {"cross_attention_kwargs": {"ip_adapter_masks": regions(2)}}),
    "one at scale 0": ([1, 1], [0.0, 0.4], {}),
    "style alone": ([1], {"up": {"block_1": [0.0, 1.0]}}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_image_tokens_are_recorded_exactly(name: str) -> None:
    images, scale, options = CASES[name]
    pipe = tiny.sd1()
    guided = options.get("guidance_scale") != 1.0
    options = {**options, "steps": 2}
    options["ip_adapter_image_embeds"] = tiny.load_ip_adapters(pipe, images, guided)
    pipe.set_ip_adapter_scale(scale)
    want, before = dense(pipe, **options), dict(pipe.unet.attn_processors)
    plain = draw(pipe, **options)
    with xattn.record(pipe, **EVERY) as words:
        draw(pipe, **options)
    with xattn.record(pipe, words="image", **EVERY) as trace:
        drawn = draw(pipe, **options)
    np.testing.assert_array_equal(plain, drawn)
    assert_restored(pipe, before)
    rows = slice(len(trace.run.prompt_of) if guided else 0, None)
    for n, form in enumerate(("attention", "share")):
        run = trace.run.image_prompt[form]
        assert run.done == 2
        assert len(run.layers) == len(want)
        for i, layer in enumerate(run.layers):
            expected = torch.stack([each[n][rows] for each in want[layer.name]])
            torch.testing.assert_close(run.maps(i).flatten(-2), expected, atol=1e-5, rtol=1e-5)
    for i in range(len(words.run.layers)):  # the words' own maps stay
        assert torch.equal(words.run.maps(i), trace.run.maps(i))


def test_shares_of_text_and_images_are_one_together() -> None:
    pipe = tiny.sdxl()
    embeds = tiny.load_ip_adapters(pipe, [2, 1])
    with xattn.record(pipe, words=["red", "image"]) as trace:
        pipe(CAR, num_inference_steps=2, ip_adapter_image_embeds=embeds, height=SIDE, width=SIDE)
    maps = trace.image_prompt()
    assert trace.words == ("red",)
    assert list(maps) == ["text", "image 1", "image 2", "image 3"]
    np.testing.assert_allclose(sum(np.asarray(maps[name]) for name in maps), 1, atol=1e-5)
    assert maps.adapters == {"image 1": 0, "image 2": 0, "image 3": 1}
    assert [len(maps.tokens[name]) for name in maps.tokens] == [4, 4, 4]
    # one softmax for the images of an adapter, summed over steps as a word's is
    both = sum(np.asarray(heat) for n in (1, 2) for heat in maps.tokens[f"image {n}"])
    np.testing.assert_allclose(both, 2, atol=0.01)
    assert sum(maps.shares.values()) == pytest.approx(1, abs=1e-4)
    assert maps.grid().width > maps["text"].overlay().width


def test_an_adapter_at_scale_0_gives_nothing() -> None:
    pipe = tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    pipe.set_ip_adapter_scale(0.0)
    with xattn.record(pipe, words="image", keep=()) as trace:
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)
    assert trace.image_prompt().shares == {"text": 1, "image": 0}


def test_an_offloaded_pipeline_has_the_same_maps() -> None:
    pipe = tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    with xattn.record(pipe, words="image") as plain:
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)
    offload_groups(pipe)
    with xattn.record(pipe, words="image") as trace:
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)
    for form, run in plain.run.image_prompt.items():
        assert torch.equal(run.maps(0), trace.run.image_prompt[form].maps(0))


def test_maps_of_an_image_prompt_are_kept_in_files(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    with xattn.record(pipe, words="image") as trace:
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)
    trace.save(tmp_path / "trace.safetensors")
    again = xattn.load(tmp_path / "trace.safetensors")
    assert str(again.image_prompt()) == str(trace.image_prompt())


def test_without_an_adapter_image_is_a_word() -> None:
    pipe = tiny.sd1()
    with xattn.record(pipe, words="image") as trace:
        draw(pipe, "an image of a car", steps=1)
    assert trace.words == ("image",)
    with pytest.raises(ValueError, match="no image prompt was recorded"):
        trace.image_prompt()
    with pytest.raises(ValueError, match="load an IP-Adapter"), xattn.record(pipe, words="image"):
        draw(pipe, steps=1)


def test_a_word_image_is_kept_beside_the_image_prompt() -> None:
    pipe = tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    with xattn.record(pipe, words=["car", "image"]) as trace:
        draw(pipe, "an image of a car", steps=1, ip_adapter_image_embeds=embeds)
    assert trace.words == ("image", "car")
    assert list(trace.image_prompt()) == ["text", "image"]


def test_a_processor_of_another_kind_is_refused_and_its_words_stay_right() -> None:
    pipe = tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    with xattn.record(pipe, dtype=torch.float32) as want:
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)
    for module in pipe.unet.modules():
        if isinstance(getattr(module, "processor", None), IPAdapterAttnProcessor2_0):
            fused = module.processor
            explicit = IPAdapterAttnProcessor(fused.hidden_size, fused.cross_attention_dim, (4,))
            explicit.load_state_dict(fused.state_dict())
            module.processor = explicit
    with xattn.record(pipe, dtype=torch.float32) as trace:
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)
    for n in range(len(trace.run.layers)):
        torch.testing.assert_close(trace.run.maps(n), want.run.maps(n), atol=1e-5, rtol=1e-5)
    with (
        pytest.raises(TypeError, match="IPAdapterAttnProcessor2_0"),
        xattn.record(pipe, words="image"),
    ):
        draw(pipe, steps=1, ip_adapter_image_embeds=embeds)


def test_an_adapter_of_stable_diffusion_3_is_refused_and_words_are_recorded() -> None:
    pipe = transformers.sd3(t5=False)
    before, model = dict(pipe.transformer.attn_processors), pipe.transformer
    torch.manual_seed(0)
    layers = {name: model.get_submodule(name.removesuffix(".processor")) for name in before}
    width = next(iter(layers.values())).inner_dim
    adapted = {
        name: SD3IPAdapterJointAttnProcessor2_0(width, 8, width // layer.heads)
        if layer.added_kv_proj_dim is not None
        else before[name]
        for name, layer in layers.items()
    }
    with xattn.record(pipe, dtype=torch.float32) as want:
        draw(pipe, steps=1)
    model.set_attn_processor(adapted)
    with xattn.record(pipe, dtype=torch.float32) as trace:
        draw(pipe, steps=1)
    torch.testing.assert_close(trace.run.maps(0), want.run.maps(0))
    with (
        pytest.raises(TypeError, match="has SD3IPAdapterJointAttnProcessor2_0"),
        xattn.record(pipe, words="image"),
    ):
        draw(pipe, steps=1)
