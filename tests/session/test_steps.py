"""A step is a step of the schedule, whatever the scheduler calls at it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xattn
from tests import tiny
from tests.helpers import assert_unchanged, draw, picture
from xattn.session.clock import Schedule


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


def test_schedules_group_calls_into_steps() -> None:
    assert Schedule.of([9, 5, 5, 1, 1], order=2).steps == (0, 0, 1, 1, 2)  # Heun
    assert Schedule.of([9, 7, 5, 3, 1], order=2).timesteps == (9, 5, 1)  # DPM2
    assert Schedule.of([9, 5, 5, 1], repeats=True).steps == (0, 1, 1, 2)  # PNDM
    assert Schedule.of([9, 5, 5, 1]).steps == (0, 1, 2, 3)  # rounded alike, yet apart
    assert Schedule.of([9, 8, 8, 7, 7, 6, 6, 5, 5, 4], lead=8).steps == (0,) * 4 + (1,) * 4 + (2, 3)
    plan = Schedule.of([9, 5, 5, 1], repeats=True)
    assert [plan.ends_step(i) for i in range(4)] == [True, False, True, True]


def called_at(pipe: Any, **kwargs: Any) -> list[float]:
    """Return the timesteps at which a pipeline calls its denoiser."""
    seen: list[float] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(float(args[1])))
    draw(pipe, **kwargs)
    handle.remove()
    return seen


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7, 0.96, 1.0])
def test_pndms_repeated_timestep_is_found_wherever_img2img_begins(strength: float) -> None:
    pipe = tiny.sd1_img2img("pndm")
    given: dict[str, Any] = {"image": picture(), "strength": strength, "steps": 6}
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
