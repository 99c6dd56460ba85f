"""Recording never changes an image, has the right axes, and leaves the pipeline as it was."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from torch.nn import functional as F

import xattn
from tests import tiny
from xattn.maps import select
from xattn.session.clock import Schedule
from xattn.session.loop import Loop

PROMPT = "a red car on a green lawn"
OTHER = "two cats"


def draw(pipe: Any, prompt: Any = PROMPT, seed: int = 0, steps: int = 3, **kwargs: Any) -> Any:
    """Draws latents' images as an array: exact differences show, and no rounding hides them."""
    kwargs = {"num_inference_steps": steps, "height": 64, "width": 64, **kwargs}
    if "image" in kwargs and "mask_image" not in kwargs and not hasattr(pipe, "controlnet"):
        kwargs.pop("height"), kwargs.pop("width")
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="np", **kwargs).images


def picture(width: int = 64, height: int = 64) -> Any:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def assert_unchanged(pipe: Any, **kwargs: Any) -> xattn.Trace:
    """Draws plainly, recording, and plainly again: three equal images, the same processors."""
    before = dict(pipe.unet.attn_processors)
    plain = draw(pipe, **kwargs)
    with xattn.record(pipe) as trace:
        recorded = draw(pipe, **kwargs)
    np.testing.assert_array_equal(plain, recorded)
    assert_restored(pipe, before)
    np.testing.assert_array_equal(plain, draw(pipe, **kwargs))
    return trace


def assert_restored(pipe: Any, before: dict[str, Any]) -> None:
    after = pipe.unet.attn_processors
    assert list(before) == list(after)
    assert all(type(after[name]) is type(before[name]) for name in before)
    assert all(after[name] is before[name] for name in before)
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._forward_hooks
    assert "encode_prompt" not in pipe.__dict__
    assert "postprocess" not in pipe.image_processor.__dict__


@pytest.mark.parametrize("family", [tiny.sd1, tiny.sd2, tiny.sdxl])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_recording_leaves_the_image_unchanged(family: Callable[..., Any], dtype: Any) -> None:
    # many CPUs emulate half precision, at a twentieth of the speed
    small = {"steps": 2, "height": 32, "width": 32} if dtype == torch.bfloat16 else {}
    trace = assert_unchanged(family().to(dtype=dtype), **small)
    assert trace.run.done == small.get("steps", 3)


@pytest.mark.parametrize(
    "asked",
    [
        {"guidance_scale": 1.0},
        {"prompt": [PROMPT, OTHER], "num_images_per_prompt": 2},
        {"height": 64, "width": 96},
        {"negative_prompt": "blue"},
        {"prompt": ""},
        {"prompt": [PROMPT, OTHER], "negative_prompt": [PROMPT, OTHER]},
    ],
    ids=["unguided", "2x2", "wide", "negative", "empty", "prompt-is-negative"],
)
def test_recording_leaves_every_kind_of_call_unchanged(sd1: Any, asked: dict[str, Any]) -> None:
    trace = assert_unchanged(sd1, **asked)
    prompts = asked.get("prompt", PROMPT)
    count = asked.get("num_images_per_prompt", 1) * (1 if isinstance(prompts, str) else 2)
    assert len(trace.run.prompt_of) == count
    assert trace.run.latent == (32, 48 if asked.get("width") == 96 else 32)


@pytest.mark.parametrize("scheduler", tiny.SCHEDULERS)
def test_a_step_is_a_step_of_the_schedule(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    trace = assert_unchanged(pipe, steps=4)
    assert trace.run.done == len(trace.run.timesteps) == 4
    assert trace.run.maps(0).shape[0] == 4
    assert list(trace.run.timesteps) == sorted(trace.run.timesteps, reverse=True)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "heun", "dpm++2m"])
def test_img2img_has_the_shortened_schedule(scheduler: str) -> None:
    pipe = tiny.sd1_img2img(scheduler)
    trace = assert_unchanged(pipe, image=picture(), strength=0.5, steps=6)
    # PNDM's repeated timestep lies before the half that is run: four different ones are left
    steps = 4 if scheduler == "pndm" else 3
    assert trace.run.done == len(trace.run.timesteps) == steps


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


def test_pag_is_recorded_in_its_first_conditional_rows() -> None:
    pipe = tiny.pag()
    assert_unchanged(pipe, pag_scale=3.0)
    dense = dense_probs(pipe, pag_scale=3.0)
    with xattn.record(pipe, keep=("step", "layer", "head"), dtype=torch.float32) as trace:
        draw(pipe, pag_scale=3.0)
    run = trace.run
    apart = []
    for i, layer in enumerate(run.layers):
        probs = torch.stack(dense[layer.name])  # (steps, rows, heads, queries, tokens)
        _, first, second = probs[..., list(run.positions)].transpose(-1, -2).split(1, dim=1)
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
    prompt = PROMPT
    states = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1))
    sample = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        plain = unet(sample, 10, states).sample
        with xattn.record(Loop(unet, tokenizer=tiny.tokenizer(), prompt=prompt)) as trace:
            recorded = unet(sample, 10, states).sample
    assert torch.equal(plain, recorded)
    sums = trace.run.maps(0).sum(3)
    assert (sums > 0).all()
    assert (sums < 1).all()


def test_processors_replaced_inside_the_block_are_wrapped_again(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        sd1.enable_attention_slicing(1)
        draw(sd1)
        sd1.disable_attention_slicing()
        draw(sd1)
    assert len(trace.runs) == 2
    assert all(run.done == 3 for run in trace.runs)
    assert {type(p) for p in sd1.unet.attn_processors.values()} == {AttnProcessor2_0}


def test_nested_recordings_both_record_and_both_restore(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    plain = draw(sd1)
    with xattn.record(sd1) as outer, xattn.record(sd1, words="red", keep=("layer",)) as inner:
        recorded = draw(sd1)
    np.testing.assert_array_equal(plain, recorded)
    assert_restored(sd1, before)
    mean = outer.run.maps(0)[:, :, :, [outer.run.positions.index(inner.run.positions[0])]].mean(0)
    torch.testing.assert_close(inner.run.maps(0)[0], mean, atol=1e-3, rtol=0)


@contextmanager
def editing(pipe: Any, **options: Any) -> Iterator[tuple[Callable[[], Any], xattn.Trace]]:
    """Gives a function that draws a prompt and an edited sibling, and their trace."""
    edits = [xattn.Replace("red", "blue"), xattn.LocalBlend("car")]
    with xattn.editing(pipe, PROMPT, edits) as session:
        assert session.trace is not None
        yield (
            lambda: draw(pipe, session.prompts, callback_on_step_end=session.callback, **options),
            session.trace,
        )


def test_a_recording_around_an_edit_sees_each_rows_own_attention(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    edits = [xattn.Replace("red", "blue"), xattn.Reweight("blue", 3.0)]
    options = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}

    def edited() -> Any:
        return xattn.edit(sd1, PROMPT, edits, generator=torch.Generator().manual_seed(0), **options)

    plain = edited()
    with xattn.record(sd1) as outer:
        result = edited()
        with editing(sd1) as (inside, _):
            inside()
    np.testing.assert_array_equal(plain.source, result.source)
    np.testing.assert_array_equal(plain.images[0], result.images[0])
    assert_restored(sd1, before)
    assert [trace.prompts for trace in outer] == [(PROMPT, "a blue car on a green lawn")] * 2
    effect, own = result.trace.run.maps(0), outer[0].run.maps(0)
    torch.testing.assert_close(own[:, 0], effect[:, 0], atol=1e-3, rtol=0)  # the source
    blue = outer[0].run.positions.index(2)
    # in the first step both rows have the same queries: in effect "blue" has three times "red"
    torch.testing.assert_close(effect[0, 1, :, blue], 3 * own[0, 0, :, blue], atol=3e-3, rtol=0)
    assert not torch.allclose(own[0, 1, :, blue], own[0, 0, :, blue], atol=1e-3)


def test_a_recording_inside_editing_is_refused(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    with editing(sd1) as (inside, _):
        plain = inside()
        with pytest.raises(RuntimeError, match="start the recording first"), xattn.record(sd1):
            inside()
        np.testing.assert_array_equal(plain, inside())
    assert_restored(sd1, before)


@contextmanager
def recording(pipe: Any, **options: Any) -> Iterator[tuple[Callable[[], Any], xattn.Trace]]:
    """Gives a function that draws a prompt, and its trace."""
    with xattn.record(pipe) as trace:
        yield lambda: draw(pipe, **options), trace


@pytest.mark.parametrize("block", [recording, editing])
def test_projections_fused_inside_a_block_can_be_unfused_after_it(
    sd1: Any, block: Callable[[Any], Any]
) -> None:
    before, plain = dict(sd1.unet.attn_processors), draw(sd1)
    with xattn.record(sd1) as outer, block(sd1) as (drawn, _):
        drawn()
        sd1.fuse_qkv_projections(vae=False)
        drawn()
    assert len(outer) == 2
    stored = sd1.unet.original_attn_processors
    assert all(stored[name] is processor for name, processor in before.items())
    sd1.unfuse_qkv_projections(vae=False)
    assert_restored(sd1, before)
    np.testing.assert_allclose(plain, draw(sd1), atol=1e-5)


def test_nested_recordings_left_in_the_wrong_order_still_restore(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    first, second = xattn.record(sd1), xattn.record(sd1)
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    plain = draw(sd1)
    second.__exit__(None, None, None)
    np.testing.assert_array_equal(plain, draw(sd1))
    assert_restored(sd1, before)


def test_a_pipeline_that_shares_the_unet_is_not_recorded(sd1: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    sibling = StableDiffusionImg2ImgPipeline.from_pipe(sd1)
    sibling.set_progress_bar_config(disable=True)
    with xattn.record(sd1) as trace:
        draw(sibling, image=picture(), strength=0.5, steps=4)
        assert len(trace) == 0
        draw(sd1)
        draw(sibling, image=picture(), strength=0.5, steps=4)
    assert len(trace) == 1


def test_each_call_is_a_run_of_its_own(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        draw(sd1)
        draw(sd1, OTHER, steps=2)
    assert [run.done for run in trace.runs] == [3, 2]
    assert trace.prompts == (OTHER,)
    assert trace[0].prompts == (PROMPT,)


def test_a_pipeline_may_be_cast_inside_the_block(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    with xattn.record(sd1) as trace:
        draw(sd1)
        sd1.to(torch.bfloat16)
        draw(sd1)
    assert_restored(sd1, before)
    a, b = trace.runs
    torch.testing.assert_close(a.maps(0)[0], b.maps(0)[0], atol=0.05, rtol=0)


# -- what is kept ------------------------------------------------------------------------------


def dense_probs(pipe: Any, **kwargs: Any) -> dict[str, list[torch.Tensor]]:
    """Computes every cross-attention's probabilities densely, by an independent processor."""
    seen: dict[str, list[torch.Tensor]] = {}

    class Dense:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(
            self,
            attn: Any,
            hidden_states: torch.Tensor,
            encoder_hidden_states: Any = None,
            attention_mask: Any = None,
            temb: Any = None,
        ) -> Any:
            if encoder_hidden_states is not None:
                batch = len(hidden_states)
                q = attn.to_q(hidden_states).reshape(
                    batch, -1, attn.heads, attn.inner_dim // attn.heads
                )
                k = attn.to_k(encoder_hidden_states).reshape(batch, 77, attn.heads, -1)
                logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
                weights = (logits - logits.amax(-1, True)).exp()
                seen.setdefault(self.name, []).append(weights / weights.sum(-1, True))
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)

    names = list(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({n: Dense(n.removesuffix(".processor")) for n in names})
    draw(pipe, **kwargs)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    return seen


@pytest.mark.parametrize("family", [tiny.sd1, tiny.sd2, tiny.sdxl])
def test_maps_are_the_softmax_of_the_conditional_rows(family: Callable[..., Any]) -> None:
    pipe = family()
    dense = dense_probs(pipe, prompt=[PROMPT, OTHER])
    with xattn.record(pipe, keep=("step", "layer", "head"), dtype=torch.float32) as trace:
        draw(pipe, prompt=[PROMPT, OTHER])
    run = trace.run
    assert {layer.name for layer in run.layers} == set(dense)
    for i, layer in enumerate(run.layers):
        probs = torch.stack(dense[layer.name])[:, 2:]  # (steps, images, heads, queries, tokens)
        torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]))
        expected = probs[..., list(run.positions)].transpose(-1, -2)
        torch.testing.assert_close(run.maps(i).flatten(-2), expected, atol=1e-6, rtol=1e-5)


def test_heat_maps_equal_a_dense_computation_of_the_definition(sd1: Any) -> None:
    dense = dense_probs(sd1)
    with xattn.record(sd1, dtype=torch.float32) as trace:
        draw(sd1)
    position = 2  # <start> a red
    layers = []
    for probs in dense.values():
        summed = sum(p[1, :, :, position].mean(0) for p in probs)
        side = int(summed.numel() ** 0.5)  # type: ignore[union-attr]
        grid = summed.reshape(1, 1, side, side)  # type: ignore[union-attr]
        up = F.interpolate(grid, size=(32, 32), mode="bicubic", align_corners=False)
        layers.append(up[0, 0].clamp(min=0))
    expected = torch.stack(layers).mean(0).numpy()
    got = np.asarray(trace.heatmap("red", layers="all"))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "keep",
    [("step", "layer", "head"), ("step",), ("layer",), (), ("layer", "head"), ("step", "layer")],
)
def test_dropped_axes_are_averages_of_the_kept_ones(sd1: Any, keep: tuple[str, ...]) -> None:
    full = ("step", "layer", "head")
    with xattn.record(sd1, keep=full, dtype=torch.float32) as whole:
        draw(sd1)
    with xattn.record(sd1, keep=keep, dtype=torch.float32) as trace:
        draw(sd1)
    run = trace.run
    for i, layer in enumerate(run.layers):
        members = [j for j, each in enumerate(whole.run.layers) if each.name in layer.members]
        expected = torch.stack([whole.run.maps(j) for j in members]).mean(0)
        if "head" not in keep:
            expected = expected.mean(2, keepdim=True)
        if "step" not in keep:
            expected = expected.mean(0, keepdim=True)
        torch.testing.assert_close(run.maps(i), expected, atol=1e-6, rtol=1e-5)
    assert behind(run) == behind(whole.run)


def behind(run: Any) -> set[str]:
    """The layers that a heat map is made of by default, those behind an average too."""
    return {name for i in select.layers_of(run)[0] for name in run.layers[i].members}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "keep", [("step", "layer"), ("step",), ("layer",), ("step", "layer", "head")]
)
def test_bytes_are_known_before_the_first_step_and_kept_to(sd1: Any, keep: Any, dtype: Any) -> None:
    known: list[int] = []

    def look(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        known.append(trace.nbytes)
        return kwargs

    with xattn.record(sd1, keep=keep, dtype=dtype) as trace:
        draw(sd1, callback_on_step_end=look)
    run = trace.run
    areas = [layer.area * (layer.heads if "head" in keep else 1) for layer in run.layers]
    steps = 3 if "step" in keep else 1
    expected = steps * 7 * sum(areas) * dtype.itemsize
    assert known == [expected] * 3
    assert trace.nbytes == expected


def test_words_limit_what_is_kept(sd1: Any) -> None:
    with xattn.record(sd1, words=["red", "green lawn"]) as trace:
        draw(sd1)
    assert trace.run.positions == (2, 6, 7)
    with pytest.raises(ValueError, match="car"):
        trace.heatmap("car")


def test_the_whole_token_axis_can_be_kept_and_its_rows_sum_to_one(sd1: Any) -> None:
    with xattn.record(sd1, words=range(77), dtype=torch.float32) as trace:
        draw(sd1)
    assert trace.run.positions == tuple(range(77))
    for i in range(len(trace.run.layers)):
        sums = trace.run.maps(i).sum(3)
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert trace.heatmap(0).shape == (32, 32)  # the start token, where attention rests
    np.testing.assert_array_equal(trace.heatmap([2, 3]), trace.heatmap("red car"))


def test_a_word_that_is_not_there_fails_before_sampling(sd1: Any) -> None:
    calls: list[Any] = []
    handle = sd1.unet.register_forward_hook(lambda *_: calls.append(1))
    with (
        pytest.raises(ValueError, match=r"'blu'.*its words are: a, red, car"),
        xattn.record(sd1, words="blu"),
    ):
        draw(sd1)
    handle.remove()
    assert calls == []


def test_negative_prompts_are_recorded_when_asked(sd1: Any) -> None:
    with xattn.record(sd1, negative=True, dtype=torch.float32) as trace:
        draw(sd1, negative_prompt="two cats")
    run = trace.run
    assert [p.text for p in run.prompts] == [PROMPT, "two cats"]
    assert run.prompt_of == (0, 1)
    with xattn.record(sd1, dtype=torch.float32) as plain:
        draw(sd1, negative_prompt="two cats")
    torch.testing.assert_close(run.maps(0)[:, :1], plain.run.maps(0))
    assert (trace.heatmap("cats", image=1).array > 0).any()


def test_prompts_passed_as_embeddings(sd1: Any) -> None:
    positive, negative = sd1.encode_prompt(PROMPT, "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    with xattn.record(sd1, words=[2]) as by_index:
        draw(sd1, **given)
    with xattn.record(sd1, prompt=PROMPT) as by_text:
        draw(sd1, **given)
    expected = by_text.run.maps(0)[:, :, :, [1]]
    torch.testing.assert_close(by_index.run.maps(0), expected)
    assert by_text.heatmap("red").shape == (32, 32)
    with xattn.record(sd1) as unknown:
        draw(sd1, **given)
    with pytest.raises(ValueError, match="prompt="):
        unknown.heatmap("red")


def test_layers_are_chosen_by_name_or_glob(sd1: Any) -> None:
    with xattn.record(sd1, layers="up_blocks.*") as trace:
        draw(sd1)
    assert {layer.name.split(".")[0] for layer in trace.run.layers} == {"up_blocks"}
    with (
        pytest.raises(ValueError, match=r"nothing\.\*.*mid_block"),
        xattn.record(sd1, layers="nothing.*"),
    ):
        pass


@pytest.mark.parametrize("keep", [("step", "layer"), ("layer",)])
def test_maps_streamed_to_a_folder_are_the_same(sd1: Any, tmp_path: Any, keep: Any) -> None:
    with xattn.record(sd1, keep=keep) as memory:
        draw(sd1)
    with xattn.record(sd1, keep=keep, to=tmp_path / "run") as disk:
        draw(sd1)
    assert disk.nbytes == memory.nbytes
    for i in range(len(memory.run.layers)):
        assert torch.equal(memory.run.maps(i), disk.run.maps(i))
    loaded = xattn.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.heatmap("red"), memory.heatmap("red"))


def test_what_does_not_fit_is_refused_before_the_first_step(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([(10**9, "the device"), (40_000, "this machine's memory")])
    monkeypatch.setattr("xattn.records.room.free_bytes", lambda *_: next(free))
    calls: list[Any] = []
    handle = sd1.unet.register_forward_hook(lambda *_: calls.append(1))
    fitting = r"40\.0 kB free; what would fit: .*keep="
    keep = ("step", "layer", "head")
    with pytest.raises(MemoryError, match=fitting) as caught, xattn.record(sd1, keep=keep):
        draw(sd1)
    handle.remove()
    assert calls == []
    assert "folder" in str(caught.value)


# -- somebody's own loop -----------------------------------------------------------------------


def own_loop(pipe: Any, steps: int = 3) -> torch.Tensor:
    positive, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    states = torch.cat([negative, positive])
    pipe.scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(torch.cat([latents] * 2), t, encoder_hidden_states=states).sample
            guided = noise[:1] + 7.5 * (noise[1:] - noise[:1])
            latents = pipe.scheduler.step(guided, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_loop_of_ones_own_is_recorded(sd1: Any, scheduled: bool) -> None:
    plain = own_loop(sd1)
    scheduler = sd1.scheduler if scheduled else None
    loop = Loop(sd1.unet, tokenizer=sd1.tokenizer, prompt=PROMPT, scheduler=scheduler)
    with xattn.record(loop) as trace:
        recorded = own_loop(sd1)
        own_loop(sd1)
    assert torch.equal(plain, recorded)
    assert [run.done for run in trace.runs] == [3, 3]
    assert len(trace.run.timesteps) == 3
    with xattn.record(sd1) as expected:
        draw(sd1)
    torch.testing.assert_close(trace.run.maps(0), expected.run.maps(0), atol=2e-3, rtol=0)


def test_gradients_flow_and_are_not_kept(sd1: Any) -> None:
    positive, _ = sd1.encode_prompt(PROMPT, "cpu", 1, False)
    latents = torch.randn(1, 4, 32, 32).requires_grad_()
    with xattn.record(Loop(sd1.unet, tokenizer=sd1.tokenizer, prompt=PROMPT)) as trace:
        sd1.unet(latents, 5, encoder_hidden_states=positive).sample.sum().backward()
    assert latents.grad is not None
    assert not trace.run.maps(0).requires_grad


def test_a_unet_alone_needs_tokenizer_and_prompt(sd1: Any) -> None:
    with pytest.raises(TypeError, match=r"xattn\.Loop"), xattn.record(sd1.unet):
        pass
    with pytest.raises(ValueError, match="needs tokenizer="):
        Loop(sd1.unet, prompt=PROMPT)
    loop = Loop(sd1.unet, tokenizer=sd1.tokenizer)
    with pytest.raises(ValueError, match="needs its prompt"), xattn.record(loop):
        pass


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


def test_a_unet_has_no_negative_prompt(sd1: Any) -> None:
    refused = xattn.record(Loop(sd1.unet, tokenizer=sd1.tokenizer, prompt=PROMPT), negative=True)
    with pytest.raises(ValueError, match="negative=True needs a pipeline"), refused:
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
    edit = xattn.editing(sd1, PROMPT, xattn.Replace("red", "blue"), **options)
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
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
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


def test_previews_and_affinities_keep_no_gradients(sd1: Any) -> None:
    positive, _ = sd1.encode_prompt(PROMPT, "cpu", 1, False)
    sd1.unet.set_attn_processor(AttnProcessor())
    sd1.scheduler.set_timesteps(1)
    own = {"tokenizer": sd1.tokenizer, "prompt": PROMPT, "scheduler": sd1.scheduler}
    latents = torch.randn(1, 4, 32, 32).requires_grad_()
    with xattn.record(Loop(sd1.unet, **own), previews=True, affinity=True) as trace:
        sd1.unet(latents, sd1.scheduler.timesteps[0], positive).sample.sum().backward()
    assert latents.grad is not None
    assert not trace.run.estimates.requires_grad  # type: ignore[union-attr]
    assert not trace.run.affinity.requires_grad  # type: ignore[union-attr]


# -- faults ------------------------------------------------------------------------------------


class FaultError(Exception):
    pass


def _places(pipe: Any) -> list[tuple[Any, str]]:
    unet = pipe.unet
    blocks = [
        unet.conv_in, unet.time_embedding, unet.down_blocks[0], unet.down_blocks[1],
        unet.mid_block, unet.up_blocks[1], unet.up_blocks[2], unet.conv_out,
        unet.down_blocks[0].attentions[0], unet.mid_block.attentions[0],
        unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_q,
        unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_out[0],
        unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k,
        unet.up_blocks[1].attentions[0].transformer_blocks[0].attn1.to_v,
        pipe.text_encoder, pipe.vae.decoder,
    ]  # fmt: skip
    methods = [
        (pipe.scheduler, "step"), (pipe.scheduler, "set_timesteps"),
        (pipe, "prepare_latents"), (pipe.image_processor, "postprocess"),
    ]  # fmt: skip
    return [(block, "forward") for block in blocks] + methods


SMALL = {"height": 32, "width": 32}


@dataclass
class Steady:
    """A pipeline that many faults pass through, and what it draws without one."""

    pipe: Any
    block: Callable[[Any], Any]
    plain: Any
    expected: Any


@pytest.fixture(scope="module", params=[recording, editing])
def steady(request: pytest.FixtureRequest) -> Steady:
    pipe, block = tiny.sd1(), request.param
    plain = draw(pipe, **SMALL)
    with block(pipe, **SMALL) as (drawn, _):
        expected = drawn()
    return Steady(pipe, block, plain, expected)


@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("at", [1, 2])
def test_the_pipeline_is_restored_after_a_fault_anywhere(
    steady: Steady, number: int, at: int
) -> None:
    before = dict(steady.pipe.unet.attn_processors)
    owner, name = _places(steady.pipe)[number]
    original, count = getattr(owner, name), 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count >= at:
            raise FaultError(name)
        return original(*args, **kwargs)

    with steady.block(steady.pipe, **SMALL) as (drawn, trace):
        setattr(owner, name, broken)
        try:
            drawn()
            drawn()
        except FaultError:
            pass
        finally:
            delattr(owner, name)
        np.testing.assert_array_equal(steady.expected, drawn())  # the block goes on
    assert count >= at
    assert_restored(steady.pipe, before)
    assert trace.run.done == 3
    np.testing.assert_array_equal(steady.plain, draw(steady.pipe, **SMALL))


def test_steps_complete_before_a_fault_can_be_read(sd1: Any) -> None:
    def stop(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise FaultError
        return kwargs

    with pytest.raises(FaultError), xattn.record(sd1) as trace:
        draw(sd1, callback_on_step_end=stop)
    assert trace.run.done == 2
    assert len(trace.steps("red")) == 2


@pytest.mark.parametrize("edits", [False, True])
def test_a_second_thread_in_one_block_is_refused(sd1: Any, edits: bool) -> None:
    errors: list[BaseException] = []

    def intrude(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if edits:
            kwargs = session.callback(pipe, step, timestep, kwargs)
        if step:
            return kwargs

        def other() -> None:
            try:
                draw(sd1, session.prompts if edits else PROMPT)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return kwargs

    if edits:
        with editing(sd1) as (drawn, _):
            plain = drawn()
        blend = [xattn.Replace("red", "blue"), xattn.LocalBlend("car")]
        with xattn.editing(sd1, PROMPT, blend) as session:
            recorded = draw(sd1, session.prompts, callback_on_step_end=intrude)
        trace = session.trace
    else:
        plain = draw(sd1)
        with xattn.record(sd1) as trace:
            recorded = draw(sd1, callback_on_step_end=intrude)
    np.testing.assert_array_equal(plain, recorded)
    assert trace.run.done == 3
    assert len(trace) == 1
    assert errors
    assert all("another thread" in str(error) for error in errors)


# -- the clock ---------------------------------------------------------------------------------


def test_schedules_group_calls_into_steps() -> None:
    assert Schedule.of([9, 5, 5, 1, 1], order=2).steps == (0, 0, 1, 1, 2)  # Heun
    assert Schedule.of([9, 7, 5, 3, 1], order=2).timesteps == (9, 5, 1)  # DPM2
    assert Schedule.of([9, 5, 5, 1], repeats=True).steps == (0, 1, 1, 2)  # PNDM
    assert Schedule.of([9, 5, 5, 1]).steps == (0, 1, 2, 3)  # rounded alike, yet apart
    assert Schedule.of([9, 8, 8, 7, 7, 6, 6, 5, 5, 4], lead=8).steps == (0,) * 4 + (1,) * 4 + (2, 3)
    plan = Schedule.of([9, 5, 5, 1], repeats=True)
    assert [plan.ends_step(i) for i in range(4)] == [True, False, True, True]


# -- words -------------------------------------------------------------------------------------


def test_a_textual_inversion_is_one_word_of_several_tokens(sd1: Any) -> None:
    tiny.add_inversion(sd1, "<toy>", vectors=3)
    with xattn.record(sd1) as trace:
        draw(sd1, "a red <toy> on a lawn")
    prompt = trace.run.prompts[0]
    assert prompt.positions("<toy>") == (3, 4, 5)
    assert prompt.positions("lawn") == (8,)
    assert trace.heatmap("<toy>").shape == (32, 32)


def test_several_prompts_and_images_each_have_their_own_words(sd1: Any) -> None:
    with xattn.record(sd1, dtype=torch.float32) as trace:
        draw(sd1, [PROMPT, OTHER], num_images_per_prompt=2)
    assert trace.run.prompt_of == (0, 0, 1, 1)
    maps = [np.asarray(trace.heatmap("red", image=i)) for i in (0, 1)]
    assert (maps[0] != maps[1]).any()
    with pytest.raises(ValueError, match="its words are: two, cats"):
        trace.heatmap("red", image=2)
    with xattn.record(sd1, dtype=torch.float32) as alone:
        draw(sd1, OTHER, steps=1)
    assert alone.heatmap("cats").shape == trace.heatmap("cats", image=3).shape


def test_words_cut_off_by_truncation_are_an_error_that_says_so(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        draw(sd1, "red " * 80 + "boat", steps=1)
    with pytest.raises(ValueError, match="77"):
        trace.heatmap("boat")


def test_a_second_text_for_sdxl_leaves_positions_only(sdxl: Any) -> None:
    with xattn.record(sdxl) as trace:
        draw(sdxl, prompt_2="a blue boat", steps=1)
    with pytest.raises(ValueError, match=r"embeddings|prompt_2"):
        trace.heatmap("red")
    assert trace.heatmap(2).shape == (32, 32)


def test_pictures_of_the_run_are_kept_with_it(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        images = sd1(PROMPT, num_inference_steps=1, height=64, width=64).images
    assert trace.run.images == images


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpm++2m", "pndm"])
def test_previews_are_what_the_denoiser_takes_the_latents_to_be(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    plain = draw(pipe, steps=6)
    with xattn.record(pipe, previews=True, words="red") as trace:
        recorded = draw(pipe, steps=6)
    np.testing.assert_array_equal(plain, recorded)
    estimates = trace.run.estimates
    assert estimates is not None
    assert estimates.shape == (6, 1, 4, 32, 32)
    assert trace.nbytes == trace.run.store.nbytes + estimates.nbytes
    generator = torch.Generator().manual_seed(0)
    latents = pipe(
        PROMPT,
        generator=generator,
        num_inference_steps=6,
        height=64,
        width=64,
        output_type="latent",
    ).images
    # the last step goes to what was expected, or nearly there
    torch.testing.assert_close(estimates[-1].float(), latents, atol=0.35, rtol=0.1)


@pytest.mark.parametrize("name", ["run.safetensors", "folder"])
def test_previews_are_saved_and_animated(sd1: Any, tmp_path: Any, name: str) -> None:
    from PIL import Image

    to = tmp_path / name if name == "folder" else "cpu"
    with xattn.record(sd1, previews=True, to=to) as trace:
        sd1(PROMPT, num_inference_steps=3, height=64, width=64)
    if name != "folder":
        trace.save(tmp_path / name)
    loaded = xattn.load(tmp_path / name)
    assert torch.equal(loaded.run.estimates, trace.run.estimates)  # type: ignore[arg-type]
    trace.animate("red", 0, tmp_path / "red.gif")
    with Image.open(tmp_path / "red.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]


# -- what must not be labelled wrong -----------------------------------------------------------


def called_at(pipe: Any, **kwargs: Any) -> list[float]:
    """Gives the timesteps at which a pipeline calls its denoiser."""
    seen: list[float] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(float(args[1])))
    draw(pipe, **kwargs)
    handle.remove()
    return seen


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7, 0.96, 1.0])
def test_pndms_repeated_timestep_is_found_wherever_img2img_begins(strength: float) -> None:
    pipe = tiny.sd1_img2img("pndm")
    given = {"image": picture(), "strength": strength, "steps": 6}
    calls = called_at(pipe, **given)
    with xattn.record(pipe, dtype=torch.float32) as trace:
        draw(pipe, **given)
    assert list(trace.run.timesteps) == list(dict.fromkeys(calls))


def test_runge_kutta_calls_go_four_to_a_step() -> None:
    pipe = tiny.sd1("pndm")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, skip_prk_steps=False)
    trace = assert_unchanged(pipe, steps=8)
    assert trace.run.done == 8


def test_timesteps_that_a_schedule_rounded_alike_stay_steps() -> None:
    pipe = tiny.sd1("dpm++2m")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_karras_sigmas=True)
    with xattn.record(pipe, words="red", keep=("step",)) as trace:
        draw(pipe, steps=50)
    assert trace.run.done == 50


def test_a_denoiser_called_again_at_a_timestep_is_refused(sd1: Any) -> None:
    def again(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe.unet(kwargs["latents"].repeat(2, 1, 1, 1), timestep, kwargs["prompt_embeds"])
        return kwargs

    names = ["latents", "prompt_embeds"]
    with pytest.raises(RuntimeError, match="called more than once"), xattn.record(sd1):
        draw(sd1, callback_on_step_end=again, callback_on_step_end_tensor_inputs=names)


def test_a_text_exchanged_during_the_run_is_refused(sd1: Any) -> None:
    def change(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": kwargs["prompt_embeds"] + 1}

    names = ["prompt_embeds"]
    with pytest.raises(RuntimeError, match="did not encode"), xattn.record(sd1):
        draw(sd1, callback_on_step_end=change, callback_on_step_end_tensor_inputs=names)


def test_embeddings_that_somebody_wants_meanwhile_begin_no_run(sd1: Any) -> None:
    def encode(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe.encode_prompt(OTHER, "cpu", 1, True)
        return kwargs

    with xattn.record(sd1) as trace:
        sd1.encode_prompt(OTHER, "cpu", 1, True)
        draw(sd1, callback_on_step_end=encode)
    assert [run.done for run in trace.runs] == [3]
    assert trace.prompts == (PROMPT,)


def test_a_sibling_after_a_run_that_was_broken_off_is_not_recorded(sd1: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    def stop(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return kwargs

    sibling = StableDiffusionImg2ImgPipeline.from_pipe(sd1)
    sibling.set_progress_bar_config(disable=True)
    with xattn.record(sd1) as trace:
        draw(sd1, steps=4, callback_on_step_end=stop)
        before = np.asarray(trace.heatmap("red"))
        draw(sibling, PROMPT, image=picture(), strength=0.5, steps=4)
    assert [run.done for run in trace.runs] == [2]
    np.testing.assert_array_equal(trace.heatmap("red"), before)


def test_an_exchanged_unet_is_refused(sd1: Any) -> None:
    with xattn.record(sd1):
        sd1.unet = tiny.unet(1)
        with pytest.raises(RuntimeError, match="exchanged"):
            draw(sd1)


def test_two_recordings_into_one_folder_stay_apart(sd1: Any, tmp_path: Any) -> None:
    with xattn.record(sd1, to=tmp_path, words="red") as first:
        draw(sd1)
    kept = np.asarray(first.heatmap("red"))
    with xattn.record(sd1, to=tmp_path, words="cats") as second:
        draw(sd1, OTHER)
    np.testing.assert_array_equal(first.heatmap("red"), kept)
    assert [run.prompts[0].text for run in xattn.load(tmp_path).runs] == [PROMPT, OTHER]
    assert (np.asarray(second.heatmap("cats")) != kept).any()


def test_a_sliced_negative_prompt_has_its_own_maps(sd1: Any) -> None:
    asked = {"negative_prompt": "two cats"}
    with xattn.record(sd1, negative=True, dtype=torch.float32) as plain:
        draw(sd1, **asked)
    sd1.enable_attention_slicing(1)
    with xattn.record(sd1, negative=True, dtype=torch.float32) as sliced:
        draw(sd1, **asked)
    torch.testing.assert_close(plain.run.maps(0), sliced.run.maps(0), atol=1e-4, rtol=0)


def test_a_controlnets_share_of_an_average_is_kept() -> None:
    pipe = tiny.controlnet()
    layers = ["controlnet.*", "*"]
    with xattn.record(pipe, layers=layers, dtype=torch.float32) as apart:
        draw(pipe, image=picture())
    with xattn.record(pipe, layers=layers, keep="step", dtype=torch.float32) as merged:
        draw(pipe, image=picture())
    for i, layer in enumerate(merged.run.layers):
        members = [j for j, x in enumerate(apart.run.layers) if x.name in layer.members]
        expected = torch.stack([apart.run.maps(j) for j in members]).mean(0)
        torch.testing.assert_close(merged.run.maps(i), expected, atol=1e-6, rtol=1e-5)
    assert behind(merged.run) == behind(apart.run)
    assert any(layer.middle for layer in merged.run.layers)
    names = [layer.name for layer in merged.run.layers]
    assert len(set(names)) == len(names)


def test_an_average_can_not_be_read_before_its_end(sd1: Any) -> None:
    def look(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        with (
            pytest.raises(ValueError, match="no step of this run is complete")
            if step < 2
            else (contextlib.nullcontext())
        ):
            trace.heatmap("red")
        return kwargs

    with xattn.record(sd1, keep="layer") as trace:
        draw(sd1, callback_on_step_end=look)
    assert trace.heatmap("red").maximum > 0


def test_an_unknown_picture_is_no_image_of_several(sd1: Any) -> None:
    with xattn.record(sd1) as trace:
        sd1([PROMPT, OTHER], num_inference_steps=1, height=64, width=64)
    with pytest.raises(ValueError, match="none of the run's"):
        trace.heatmap("red", picture())


def test_guidance_cut_off_leaves_the_negative_prompt_empty(sd1: Any) -> None:
    def cut(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    with xattn.record(sd1, negative=True) as trace:
        draw(
            sd1,
            negative_prompt="two cats",
            callback_on_step_end=cut,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )
    most = trace.run.maps(0).amax(dim=(2, 3, 4, 5))  # (steps, images)
    assert (most[:, 0] > 0).all()
    assert most[0, 1] > 0
    assert (most[1:, 1] == 0).all()


def test_guidance_in_two_passes_needs_and_takes_the_embeddings(sd1: Any) -> None:
    positive, negative = sd1.encode_prompt(PROMPT, "cpu", 1, True)

    def loop() -> None:
        sd1.scheduler.set_timesteps(3)
        latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in sd1.scheduler.timesteps:
                low = sd1.unet(latents, t, negative).sample
                high = sd1.unet(latents, t, positive).sample
                latents = sd1.scheduler.step(low + 7.5 * (high - low), t, latents).prev_sample

    own = {"tokenizer": sd1.tokenizer, "prompt": PROMPT}
    for scheduler in (sd1.scheduler, None):
        refused = xattn.record(Loop(sd1.unet, scheduler=scheduler, **own))
        with pytest.raises(RuntimeError, match="embeds="), refused:
            loop()
        known = Loop(sd1.unet, scheduler=scheduler, embeds=positive, **own)
        with xattn.record(known, dtype=torch.float32) as trace:
            loop()
        assert [run.done for run in trace.runs] == [3]
        with xattn.record(sd1, dtype=torch.float32) as expected:
            draw(sd1)
        torch.testing.assert_close(trace.run.maps(0), expected.run.maps(0), atol=2e-3, rtol=0)


def _encoded_anew() -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.Tensor.clone  # the allocator gives the address of the one before again


def _new_tensors_at_one_address() -> Callable[[torch.Tensor], torch.Tensor]:
    memory = np.empty(0, np.float32)

    def text(states: torch.Tensor) -> torch.Tensor:
        nonlocal memory
        memory = np.resize(memory, states.shape) if memory.shape != states.shape else memory
        memory[:] = states
        return torch.from_numpy(memory)

    return text


def _written_in_place() -> Callable[[torch.Tensor], torch.Tensor]:
    memory: list[torch.Tensor] = []

    def text(states: torch.Tensor) -> torch.Tensor:
        if not memory:
            memory.append(torch.empty_like(states))
        return memory[0].copy_(states)

    return text


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("scheduled", [True, False], ids=["scheduler", "no scheduler"])
@pytest.mark.parametrize("texts", [_encoded_anew, _new_tensors_at_one_address, _written_in_place])
def test_two_passes_are_told_apart_where_their_texts_share_memory(
    sd1: Any, texts: Callable[[], Callable[..., Any]], scheduled: bool, mode: Callable[[], Any]
) -> None:
    steps = 4
    positive, negative = sd1.encode_prompt(PROMPT, "cpu", 1, True)

    def loop(text: Callable[[torch.Tensor], torch.Tensor]) -> None:
        sd1.scheduler.set_timesteps(steps)
        latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        with mode():
            for t in sd1.scheduler.timesteps:
                low = sd1.unet(latents, t, text(negative)).sample
                high = sd1.unet(latents, t, text(positive)).sample
                latents = sd1.scheduler.step(low + 7.5 * (high - low), t, latents).prev_sample

    own = {
        "tokenizer": sd1.tokenizer, "prompt": PROMPT,
        "scheduler": sd1.scheduler if scheduled else None,
    }  # fmt: skip
    known = Loop(sd1.unet, embeds=positive, **own)
    with xattn.record(known, dtype=torch.float32) as expected:
        loop(lambda states: states)
    with xattn.record(known, dtype=torch.float32) as trace:
        loop(texts())
    assert [run.done for run in expected.runs] == [run.done for run in trace.runs] == [steps]
    for i in range(len(trace.run.layers)):
        torch.testing.assert_close(trace.run.maps(i), expected.run.maps(i))
    with pytest.raises(RuntimeError, match="embeds="), xattn.record(Loop(sd1.unet, **own)):
        loop(texts())


def test_several_images_of_one_prompt_in_a_loop_are_the_second_half(sd1: Any) -> None:
    positive, negative = sd1.encode_prompt(PROMPT, "cpu", 2, True)
    sample = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    own = {"tokenizer": sd1.tokenizer, "prompt": PROMPT}
    exact = {"dtype": torch.float32}
    with torch.no_grad(), xattn.record(Loop(sd1.unet, **own), **exact) as trace:
        sd1.unet(sample, 5, torch.cat([negative, positive]))
    with torch.no_grad(), xattn.record(Loop(sd1.unet, rows=slice(0, 2), **own), **exact) as alone:
        sd1.unet(sample[2:], 5, positive)
    assert trace.run.prompt_of == alone.run.prompt_of == (0, 0)
    torch.testing.assert_close(trace.run.maps(0), alone.run.maps(0))


def test_videos_are_refused(sd1: Any) -> None:
    own = {"tokenizer": sd1.tokenizer, "prompt": PROMPT}
    with (
        pytest.raises(RuntimeError, match="video is not supported"),
        xattn.record(Loop(sd1.unet, **own)),
    ):
        sd1.unet(torch.randn(1, 4, 2, 32, 32), 5, torch.randn(1, 77, 32))


def test_a_copy_made_inside_the_block_is_free_of_us(sd1: Any) -> None:
    plain = draw(sd1)
    with xattn.record(sd1) as trace:
        twin = copy.deepcopy(sd1)
        twin.unet(torch.randn(1, 4, 32, 32), 5, torch.randn(1, 77, 32))
        np.testing.assert_array_equal(plain, draw(twin))
        pickle.loads(pickle.dumps(sd1.unet))
    assert len(trace) == 0
    with torch.no_grad():
        for weight in twin.text_encoder.parameters():
            weight.zero_()
    assert (draw(twin) != plain).any()


def test_what_tokenizers_divide_differently_has_no_words_behind_it(sdxl: Any) -> None:
    with xattn.record(sdxl) as trace:
        draw(sdxl, "a red car!! on a lawn", steps=1)
    assert trace.heatmap("red").shape == (32, 32)
