"""Each row has its own words: several prompts, negative ones, embeddings, exchanged texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from tests.helpers import CAR, LATENT, OTHER, draw


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
    assert [p.text for p in run.prompts] == [CAR, "two cats"]
    assert run.prompt_of == (0, 1)
    with xattn.record(sd1, dtype=torch.float32) as plain:
        draw(sd1, negative_prompt="two cats")
    torch.testing.assert_close(run.maps(0)[:, :1], plain.run.maps(0))
    assert (trace.heatmap("cats", image=1).array > 0).any()


def test_prompts_passed_as_embeddings(sd1: Any) -> None:
    positive, negative = sd1.encode_prompt(CAR, "cpu", 1, True)
    given = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    with xattn.record(sd1, words=[2]) as by_index:
        draw(sd1, **given)
    with xattn.record(sd1, prompt=CAR) as by_text:
        draw(sd1, **given)
    expected = by_text.run.maps(0)[:, :, :, [1]]
    torch.testing.assert_close(by_index.run.maps(0), expected)
    assert by_text.heatmap("red").shape == (LATENT, LATENT)
    with xattn.record(sd1) as unknown:
        draw(sd1, **given)
    with pytest.raises(ValueError, match="prompt="):
        unknown.heatmap("red")


def test_a_textual_inversion_is_one_word_of_several_tokens(sd1: Any) -> None:
    tiny.add_inversion(sd1, "<toy>", vectors=3)
    with xattn.record(sd1) as trace:
        draw(sd1, "a red <toy> on a lawn")
    prompt = trace.run.prompts[0]
    assert prompt.positions("<toy>") == (3, 4, 5)
    assert prompt.positions("lawn") == (8,)
    assert trace.heatmap("<toy>").shape == (LATENT, LATENT)


def test_several_prompts_and_images_each_have_their_own_words(sd1: Any) -> None:
    with xattn.record(sd1, dtype=torch.float32) as trace:
        draw(sd1, [CAR, OTHER], num_images_per_prompt=2)
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
    assert trace.heatmap(2).shape == (LATENT, LATENT)


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
    assert trace.prompts == (CAR,)


def test_a_sliced_negative_prompt_has_its_own_maps(sd1: Any) -> None:
    asked: dict[str, Any] = {"negative_prompt": "two cats"}
    with xattn.record(sd1, negative=True, dtype=torch.float32) as plain:
        draw(sd1, **asked)
    sd1.enable_attention_slicing(1)
    with xattn.record(sd1, negative=True, dtype=torch.float32) as sliced:
        draw(sd1, **asked)
    torch.testing.assert_close(plain.run.maps(0), sliced.run.maps(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_character_in_a_prompt_is_refused_with_its_place(sd1: Any, name: str) -> None:
    with xattn.record(sd1) as trace:
        with pytest.raises(ValueError, match=rf"{name}= is .*: character 2 is a lone surrogate"):
            sd1(**{"prompt": CAR, name: "a \ud800"}, num_inference_steps=1)
        draw(sd1, steps=1)
    assert len(trace) == 1


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


def test_what_tokenizers_divide_differently_has_no_words_behind_it(sdxl: Any) -> None:
    with xattn.record(sdxl) as trace:
        draw(sdxl, "a red car!! on a lawn", steps=1)
    assert trace.heatmap("red").shape == (LATENT, LATENT)
