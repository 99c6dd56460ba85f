"""A loop of one's own is recorded as a pipeline's run is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
)

import xattn
from tests.helpers import CAR, LATENT, draw
from xattn.session.loop import Loop


def own_loop(pipe: Any, steps: int = 3) -> torch.Tensor:
    positive, negative = pipe.encode_prompt(CAR, "cpu", 1, True)
    states = torch.cat([negative, positive])
    pipe.scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
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
    loop = Loop(sd1.unet, tokenizer=sd1.tokenizer, prompt=CAR, scheduler=scheduler)
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
    positive, _ = sd1.encode_prompt(CAR, "cpu", 1, False)
    latents = torch.randn(1, 4, LATENT, LATENT).requires_grad_()
    with xattn.record(Loop(sd1.unet, tokenizer=sd1.tokenizer, prompt=CAR)) as trace:
        sd1.unet(latents, 5, encoder_hidden_states=positive).sample.sum().backward()
    assert latents.grad is not None
    assert not trace.run.maps(0).requires_grad


def test_a_unet_alone_needs_tokenizer_and_prompt(sd1: Any) -> None:
    with pytest.raises(TypeError, match=r"xattn\.Loop"), xattn.record(sd1.unet):
        pass
    with pytest.raises(ValueError, match="needs tokenizer="):
        Loop(sd1.unet, prompt=CAR)
    loop = Loop(sd1.unet, tokenizer=sd1.tokenizer)
    with pytest.raises(ValueError, match="needs its prompt"), xattn.record(loop):
        pass


def test_a_unet_has_no_negative_prompt(sd1: Any) -> None:
    refused = xattn.record(Loop(sd1.unet, tokenizer=sd1.tokenizer, prompt=CAR), negative=True)
    with pytest.raises(ValueError, match="negative=True needs a pipeline"), refused:
        pass


def test_previews_and_affinities_keep_no_gradients(sd1: Any) -> None:
    positive, _ = sd1.encode_prompt(CAR, "cpu", 1, False)
    sd1.unet.set_attn_processor(AttnProcessor())
    sd1.scheduler.set_timesteps(1)
    own = {"tokenizer": sd1.tokenizer, "prompt": CAR, "scheduler": sd1.scheduler}
    latents = torch.randn(1, 4, LATENT, LATENT).requires_grad_()
    with xattn.record(Loop(sd1.unet, **own), previews=True, affinity=True) as trace:
        sd1.unet(latents, sd1.scheduler.timesteps[0], positive).sample.sum().backward()
    assert latents.grad is not None
    assert not trace.run.estimates.requires_grad  # type: ignore[union-attr]
    assert not trace.run.affinity.requires_grad  # type: ignore[union-attr]


def test_guidance_in_two_passes_needs_and_takes_the_embeddings(sd1: Any) -> None:
    positive, negative = sd1.encode_prompt(CAR, "cpu", 1, True)

    def loop() -> None:
        sd1.scheduler.set_timesteps(3)
        latents = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for t in sd1.scheduler.timesteps:
                low = sd1.unet(latents, t, negative).sample
                high = sd1.unet(latents, t, positive).sample
                latents = sd1.scheduler.step(low + 7.5 * (high - low), t, latents).prev_sample

    own = {"tokenizer": sd1.tokenizer, "prompt": CAR}
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


@pytest.mark.parametrize(
    ("texts", "scheduled", "mode"),
    [
        (_encoded_anew, True, torch.no_grad),
        (_encoded_anew, False, torch.inference_mode),
        (_new_tensors_at_one_address, True, torch.inference_mode),
        (_new_tensors_at_one_address, False, torch.no_grad),
        (_written_in_place, True, torch.inference_mode),  # counts no versions
        (_written_in_place, False, torch.inference_mode),
        (_written_in_place, False, torch.no_grad),
    ],
)
def test_two_passes_are_told_apart_where_their_texts_share_memory(
    sd1: Any, texts: Callable[[], Callable[..., Any]], scheduled: bool, mode: Callable[[], Any]
) -> None:
    steps = 3
    positive, negative = sd1.encode_prompt(CAR, "cpu", 1, True)

    def loop(text: Callable[[torch.Tensor], torch.Tensor]) -> None:
        sd1.scheduler.set_timesteps(steps)
        latents = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
        with mode():
            for t in sd1.scheduler.timesteps:
                low = sd1.unet(latents, t, text(negative)).sample
                high = sd1.unet(latents, t, text(positive)).sample
                latents = sd1.scheduler.step(low + 7.5 * (high - low), t, latents).prev_sample

    own = {
        "tokenizer": sd1.tokenizer, "prompt": CAR,
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
    positive, negative = sd1.encode_prompt(CAR, "cpu", 2, True)
    sample = torch.randn(4, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    own = {"tokenizer": sd1.tokenizer, "prompt": CAR}
    exact: dict[str, Any] = {"dtype": torch.float32}
    with torch.no_grad(), xattn.record(Loop(sd1.unet, **own), **exact) as trace:
        sd1.unet(sample, 5, torch.cat([negative, positive]))
    with torch.no_grad(), xattn.record(Loop(sd1.unet, rows=slice(0, 2), **own), **exact) as alone:
        sd1.unet(sample[2:], 5, positive)
    assert trace.run.prompt_of == alone.run.prompt_of == (0, 0)
    torch.testing.assert_close(trace.run.maps(0), alone.run.maps(0))


def test_videos_are_refused(sd1: Any) -> None:
    own = {"tokenizer": sd1.tokenizer, "prompt": CAR}
    with (
        pytest.raises(RuntimeError, match="video is not supported"),
        xattn.record(Loop(sd1.unet, **own)),
    ):
        sd1.unet(torch.randn(1, 4, 2, 8, 8), 5, torch.randn(1, 77, 32))
