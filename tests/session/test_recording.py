"""Recording never changes an image: families, calls, processors, models that are added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from torch import nn

import xattn
from tests import tiny
from tests.helpers import (
    CAR,
    LATENT,
    OTHER,
    SIDE,
    assert_unchanged,
    dense_probs,
    draw,
    picture,
)
from xattn.session.loop import Loop


@pytest.mark.parametrize("family", [tiny.sd1, tiny.sd2, tiny.sdxl])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_recording_leaves_the_image_unchanged(family: Callable[..., Any], dtype: Any) -> None:
    # many CPUs emulate half precision, at a twentieth of the speed
    small = {"steps": 2, "height": 16, "width": 16} if dtype == torch.bfloat16 else {}
    trace = assert_unchanged(family().to(dtype=dtype), **small)
    assert trace.run.done == small.get("steps", 3)


@pytest.mark.parametrize(
    "asked",
    [
        {"guidance_scale": 1.0},
        {"prompt": [CAR, OTHER], "num_images_per_prompt": 2},
        {"height": 32, "width": 48},
        {"negative_prompt": "blue"},
        {"prompt": ""},
        {"prompt": [CAR, OTHER], "negative_prompt": [CAR, OTHER]},
    ],
    ids=["unguided", "2x2", "wide", "negative", "empty", "prompt-is-negative"],
)
def test_recording_leaves_every_kind_of_call_unchanged(sd1: Any, asked: dict[str, Any]) -> None:
    trace = assert_unchanged(sd1, **asked)
    prompts = asked.get("prompt", CAR)
    count = asked.get("num_images_per_prompt", 1) * (1 if isinstance(prompts, str) else 2)
    assert len(trace.run.prompt_of) == count
    assert trace.run.latent == (LATENT, 24 if asked.get("width") == 48 else LATENT)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (tiny.sd1_inpaint, {"mask_image": picture(), "strength": 1.0}),
        (tiny.controlnet, {}),
        (tiny.sdxl_img2img, {"strength": 0.7}),
        (tiny.sdxl_inpaint, {"mask_image": picture(), "strength": 1.0}),
    ],
    ids=["inpainting", "controlnet", "sdxl img2img", "sdxl inpainting"],
)
def test_recording_leaves_images_made_of_images_unchanged(
    family: Callable[..., Any], options: dict[str, Any]
) -> None:
    trace = assert_unchanged(family(), image=picture(), **options)
    assert trace.run.done == len(trace.run.timesteps) > 0


def test_a_controlnets_layers_are_recorded_when_named() -> None:
    pipe = tiny.controlnet()
    plain = draw(pipe, image=picture(), guess_mode=True)
    before = dict(pipe.controlnet.attn_processors)
    with xattn.record(pipe, layers=["controlnet.*", "mid_block.*"]) as trace:
        recorded = draw(pipe, image=picture(), guess_mode=True)
    np.testing.assert_array_equal(plain, recorded)
    names = [layer.name for layer in trace.run.layers]
    assert any(name.startswith("controlnet.down_blocks") for name in names)
    assert any(name.startswith("mid_block") for name in names)
    assert all(trace.run.maps(i).amax() > 0 for i in range(len(names)))
    assert all(pipe.controlnet.attn_processors[k] is v for k, v in before.items())


def test_guidance_cut_off_midway_changes_the_rows() -> None:
    pipe = tiny.sd1()

    def cut(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    cutting = {
        "callback_on_step_end": cut,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
        "steps": 4,
    }
    trace = assert_unchanged(pipe, **cutting)
    assert trace.run.done == 4
    assert (trace.run.maps(0).amax(dim=(1, 2, 3, 4, 5)) > 0).all()


def _sliced(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def _explicit(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor())


def _default(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor2_0())


def _fused(pipe: Any) -> None:
    pipe.fuse_qkv_projections()


@pytest.mark.parametrize("prepare", [_default, _explicit, _sliced, _fused, tiny.add_lora])
@pytest.mark.parametrize("family", [tiny.sd1, tiny.sd2])
def test_processors_found_before_are_wrapped_and_give_the_same_maps(
    prepare: Callable[[Any], None], family: Callable[..., Any]
) -> None:
    pipe = family()
    with xattn.record(pipe, dtype=torch.float32) as expected:
        draw(pipe)
    prepare(pipe)
    assert_unchanged(pipe)
    if prepare is tiny.add_lora:
        return  # another model
    with xattn.record(pipe, dtype=torch.float32) as trace:
        draw(pipe)
    for i in range(len(trace.run.layers)):
        torch.testing.assert_close(trace.run.maps(i), expected.run.maps(i), atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_pag_is_recorded_in_its_first_conditional_rows(guidance_scale: float) -> None:
    pipe, options = tiny.pag(), {"pag_scale": 3.0, "guidance_scale": guidance_scale}
    assert_unchanged(pipe, **options)
    dense = dense_probs(pipe, **options)
    with xattn.record(pipe, keep=("step", "layer", "head"), dtype=torch.float32) as trace:
        draw(pipe, **options)
    run = trace.run
    apart = []
    for i, layer in enumerate(run.layers):
        probs = torch.stack(dense[layer.name])  # (steps, rows, heads, queries, tokens)
        *_, first, second = probs[..., list(run.positions)].transpose(-1, -2).split(1, dim=1)
        torch.testing.assert_close(run.maps(i).flatten(-2), first, atol=1e-6, rtol=1e-5)
        apart.append(float((first - second).abs().max()))
    assert max(apart) > 1e-3  # behind the perturbed layer the other conditional rows differ


def test_an_ip_adapter_keeps_its_weights_its_scale_and_its_way_out(sd1: Any) -> None:
    embeds = tiny.load_ip_adapter(sd1)
    sd1.set_ip_adapter_scale(0.6)
    keys = list(sd1.unet.state_dict())
    trace = assert_unchanged(sd1, ip_adapter_image_embeds=embeds)
    assert trace.run.maps(0).shape[3] == len(trace.run.positions) == 7
    plain = draw(sd1, ip_adapter_image_embeds=embeds)
    with xattn.record(sd1):
        assert list(sd1.unet.state_dict()) == keys
        kinds = [type(p) for p in sd1.unet.attn_processors.values()]
        assert any(is_wrapped_type(k) for k in kinds)
        cross = [p for p in sd1.unet.attn_processors.values() if isinstance(p, nn.Module)]
        assert cross
        assert all(isinstance(p, IPAdapterAttnProcessor2_0) for p in cross)
        sd1.unet.to(torch.float64)
        weight = next(iter(cross[0].parameters()))
        assert weight.dtype == torch.float64
        sd1.unet.to(torch.float32)
        sd1.set_ip_adapter_scale(0.1)
        changed = draw(sd1, ip_adapter_image_embeds=embeds)
    assert (plain != changed).any()
    assert list(sd1.unet.state_dict()) == keys
    with xattn.record(sd1):
        sd1.unload_ip_adapter()
        draw(sd1)
    assert {type(p) for p in sd1.unet.attn_processors.values()} == {AttnProcessor2_0}


def is_wrapped_type(kind: type) -> bool:
    from xattn.processors.wrapping import Wrapper

    return issubclass(kind, Wrapper)


def test_added_keys_are_recorded_over_text_and_image_keys() -> None:
    unet = tiny.added_kv_unet()
    prompt = CAR
    states = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1))
    sample = torch.randn(2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = unet(sample, 10, states).sample
        with xattn.record(Loop(unet, tokenizer=tiny.tokenizer(), prompt=prompt)) as trace:
            recorded = unet(sample, 10, states).sample
    assert torch.equal(plain, recorded)
    sums = trace.run.maps(0).sum(3)
    assert (sums > 0).all()
    assert (sums < 1).all()


def test_each_call_is_a_run_of_its_own(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        draw(sd1)
        draw(sd1, OTHER, steps=2)
    assert [run.done for run in trace.runs] == [3, 2]
    assert trace.prompts == (OTHER,)
    assert trace[0].prompts == (CAR,)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "steps"}, "step, layer, head"),
        ({"keep": ["head"]}, 'needs "layer"'),
        ({"layers": []}, r"layers=\[\] records nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    sd1: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says), xattn.record(sd1, **options):
        pass


def test_what_has_no_unet_is_not_recorded() -> None:
    with pytest.raises(TypeError, match="no denoiser with a text encoder"), xattn.record(object()):
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 2.5}, "scale=2.5 must be a whole number"),
        ({"trace": {"previews": True}}, "'previews' is none of keep"),
        ({"side": 0}, "side=0 must be a whole number"),
    ],
)
def test_options_of_an_edit_that_make_no_sense_are_refused(
    sd1: Any, options: dict[str, Any], says: str
) -> None:
    edit = xattn.editing(sd1, CAR, xattn.Replace("red", "blue"), **options)
    with pytest.raises(ValueError, match=says), edit:
        pass


@pytest.mark.parametrize(
    ("came_from", "name"),
    [
        ("{folder}/cars", "cars"),
        ("{folder}/cars/", "cars"),
        ("{folder}/models--toys--cars/snapshots/0a1b2c", "toys/cars"),
        ("C:\\models\\cars", "cars"),
        ("toys/cars", "toys/cars"),
        ("", "StableDiffusionPipeline"),
    ],
)
def test_a_recording_names_its_model_without_this_machines_folders(
    sd1: Any, tmp_path: Path, came_from: str, name: str
) -> None:
    sd1.register_to_config(_name_or_path=came_from.format(folder=tmp_path))
    with xattn.record(sd1) as trace:
        draw(sd1, steps=1)
    assert trace.run.info["model"] == name


def test_a_float64_pipeline_is_recorded_as_a_float32_one() -> None:
    asked: dict[str, Any] = {"dtype": torch.float32, "affinity": True, "previews": True}
    noise = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    pipe = tiny.sd1()
    with xattn.record(pipe, **asked) as expected:
        draw(pipe, latents=noise)
    pipe = pipe.to(torch.float64)
    with xattn.record(pipe, **asked) as trace:
        draw(pipe, latents=noise.double())
    for i in range(len(trace.run.layers)):
        torch.testing.assert_close(trace.run.maps(i), expected.run.maps(i), atol=2e-3, rtol=0)
    torch.testing.assert_close(trace.run.affinity, expected.run.affinity, atol=2e-3, rtol=0)
    assert trace.run.estimates is not None


def test_pictures_of_the_run_are_kept_with_it(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        images = sd1(CAR, num_inference_steps=1, height=SIDE, width=SIDE).images
    assert trace.run.images == images
