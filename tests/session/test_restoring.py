"""A block leaves the pipeline as it was found: nested, exchanged, broken off, shared."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor2_0,
)

import xattn
from tests import tiny
from tests.helpers import (
    CAR,
    LATENT,
    SIDE,
    assert_restored,
    draw,
    picture,
    while_editing,
    while_recording,
)
from tests.tiny.classes import skip_before_torch


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


def test_a_recording_around_an_edit_sees_each_rows_own_attention(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    edits: list[Any] = [xattn.Replace("red", "blue"), xattn.Reweight("blue", 3.0)]
    options: dict[str, Any] = {
        "num_inference_steps": 3,
        "height": SIDE,
        "width": SIDE,
        "output_type": "np",
    }

    def edited() -> Any:
        return xattn.edit(sd1, CAR, edits, generator=torch.Generator().manual_seed(0), **options)

    plain = edited()
    with xattn.record(sd1) as outer:
        result = edited()
        with while_editing(sd1) as (inside, _):
            inside()
    np.testing.assert_array_equal(plain.source, result.source)
    np.testing.assert_array_equal(plain.images[0], result.images[0])
    assert_restored(sd1, before)
    assert [trace.prompts for trace in outer] == [(CAR, "a blue car on a green lawn")] * 2
    effect, own = result.trace.run.maps(0), outer[0].run.maps(0)
    torch.testing.assert_close(own[:, 0], effect[:, 0], atol=1e-3, rtol=0)  # the source
    blue = outer[0].run.positions.index(2)
    # in the first step both rows have the same queries: in effect "blue" has three times "red"
    torch.testing.assert_close(effect[0, 1, :, blue], 3 * own[0, 0, :, blue], atol=3e-3, rtol=0)
    assert not torch.allclose(own[0, 1, :, blue], own[0, 0, :, blue], atol=1e-3)


def test_a_recording_inside_editing_is_refused(sd1: Any) -> None:
    before = dict(sd1.unet.attn_processors)
    with while_editing(sd1) as (inside, _):
        plain = inside()
        with pytest.raises(RuntimeError, match="start the recording first"), xattn.record(sd1):
            inside()
        np.testing.assert_array_equal(plain, inside())
    assert_restored(sd1, before)


@pytest.mark.parametrize("block", [while_recording, while_editing])
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


def test_a_pipeline_may_be_cast_inside_the_block(sd1: Any) -> None:
    skip_before_torch("2.7", "bfloat16 rounds more")
    before = dict(sd1.unet.attn_processors)
    with xattn.record(sd1) as trace:
        draw(sd1)
        sd1.to(torch.bfloat16)
        draw(sd1)
    assert_restored(sd1, before)
    a, b = trace.runs
    torch.testing.assert_close(a.maps(0)[0], b.maps(0)[0], atol=0.05, rtol=0)


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
                draw(sd1, session.prompts if edits else CAR)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return kwargs

    if edits:
        with while_editing(sd1) as (drawn, _):
            plain = drawn()
        blend: list[Any] = [xattn.Replace("red", "blue"), xattn.LocalBlend("car")]
        with xattn.editing(sd1, CAR, blend) as session:
            recorded = draw(sd1, session.prompts, callback_on_step_end=intrude)
        trace: Any = session.trace
    else:
        plain = draw(sd1)
        with xattn.record(sd1) as trace:
            recorded = draw(sd1, callback_on_step_end=intrude)
    np.testing.assert_array_equal(plain, recorded)
    assert trace is not None
    assert trace.run.done == 3
    assert len(trace) == 1
    assert errors
    assert all("another thread" in str(error) for error in errors)


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
        draw(sibling, CAR, image=picture(), strength=0.5, steps=4)
    assert [run.done for run in trace.runs] == [2]
    np.testing.assert_array_equal(trace.heatmap("red"), before)


def test_an_exchanged_unet_is_refused(sd1: Any) -> None:
    with xattn.record(sd1):
        sd1.unet = tiny.unet(1)
        with pytest.raises(RuntimeError, match="exchanged"):
            draw(sd1)


def test_a_copy_made_inside_the_block_is_free_of_us(sd1: Any) -> None:
    plain = draw(sd1)
    with xattn.record(sd1) as trace:
        twin = copy.deepcopy(sd1)
        twin.unet(torch.randn(1, 4, LATENT, LATENT), 5, torch.randn(1, 77, 32))
        np.testing.assert_array_equal(plain, draw(twin))
        pickle.loads(pickle.dumps(sd1.unet))
    assert len(trace) == 0
    with torch.no_grad():
        for weight in twin.text_encoder.parameters():
            weight.zero_()
    assert (draw(twin) != plain).any()
