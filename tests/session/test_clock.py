"""Schedules, and which step a denoiser call belongs to: numbers alone, and no denoiser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xattn.session.clock import Clock, Schedule, clock_of, timestep_of


def scheduler(*timesteps: float, config: Any = (), **other: Any) -> Any:
    return SimpleNamespace(timesteps=torch.tensor(timesteps), config=dict(config), **other)


@pytest.mark.parametrize(
    ("timesteps", "options", "steps", "starts"),
    [
        ((30, 20, 10), {}, (0, 1, 2), (30, 20, 10)),
        ((30, 20, 20, 10), {}, (0, 1, 2, 3), (30, 20, 20, 10)),
        ((30, 20, 20, 10), {"repeats": True}, (0, 1, 1, 2), (30, 20, 10)),
        ((30, 20, 20, 10, 10), {"order": 2}, (0, 0, 1, 1, 2), (30, 20, 10)),
        ((9, 8, 8, 7, 7, 6, 6, 5, 4), {"lead": 8}, (0, 0, 0, 0, 1, 1, 1, 1, 2), (9, 7, 4)),
        ((9, 8, 7, 7, 6), {"lead": 3, "repeats": True}, (0, 0, 0, 1, 2), (9, 7, 6)),
        ((), {}, (), ()),
    ],
    ids=["one a step", "rounded alike", "pndm", "heun", "runge-kutta", "its rest", "none"],
)
def test_calls_are_grouped_into_steps(
    timesteps: Any, options: Any, steps: Any, starts: Any
) -> None:
    made = Schedule.of(timesteps, **options)
    assert made.steps == steps
    assert made.timesteps == starts
    assert made.at == timesteps
    assert made.calls == len(timesteps)


def test_a_steps_last_call_ends_it() -> None:
    made = Schedule.of((30, 20, 20, 10, 10), order=2)
    assert [made.ends_step(call) for call in range(5)] == [False, True, False, True, True]


def test_an_element_of_the_schedulers_tensor_is_known_by_its_place() -> None:
    base = torch.tensor([20.0, 20.0, 10.0])
    clock = Clock(Schedule.of(base.tolist()), base, 0)
    assert clock.is_at(0, base[0])
    assert clock.is_at(1, base[1])
    assert clock.is_at(1, base[0])  # by its value, which is the same
    assert not clock.is_at(2, base[1])
    assert not clock.is_at(3, base[2])  # there is no such call


def test_every_other_element_of_a_tensor_is_known_by_its_place_too() -> None:
    made = scheduler(20.0, 20.0, 10.0)
    made.timesteps = torch.tensor([20.0, 0.0, 20.0, 0.0, 10.0])[::2]
    assert clock_of(made, None, made.timesteps[1]).begin == 1  # by its value it is the first, too
    clock = Clock(Schedule.of([20.0, 20.0, 10.0]), made.timesteps, 0)
    assert clock.is_at(2, made.timesteps[2])
    assert not clock.is_at(2, made.timesteps[1])


def test_places_count_from_where_a_shortened_run_begins() -> None:
    base = torch.tensor([30.0, 20.0, 10.0])
    clock = clock_of(scheduler(30.0, 20.0, 10.0), 2, torch.tensor(20.0))
    assert (clock.begin, clock.schedule.at) == (1, (20.0, 10.0))
    clock = Clock(clock.schedule, base, 1)
    assert clock.is_at(0, base[1])
    assert not clock.is_at(0, base[0])


@pytest.mark.parametrize("given", [20, 20.0, torch.tensor(20), torch.tensor([20.0, 20.0])])
def test_any_other_timestep_is_known_by_its_value(given: Any) -> None:
    base = torch.tensor([30.0, 20.0, 10.0])
    clock = Clock(Schedule.of(base.tolist()), base, 0)
    assert clock.is_at(1, given)
    assert not clock.is_at(0, given)
    assert timestep_of(given) == 20.0


@pytest.mark.parametrize(
    ("dtype", "same"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)]
)
def test_only_narrow_numbers_may_be_rounded(dtype: torch.dtype, same: bool) -> None:
    base = torch.tensor([981.0])
    clock = Clock(Schedule.of(base.tolist()), base, 0)
    assert clock.is_at(0, torch.tensor(980.0, dtype=dtype)) == same
    assert clock.is_at(0, base.to(dtype))


def test_a_repeated_timestep_is_placed_by_how_many_calls_are_left() -> None:
    times = scheduler(30.0, 20.0, 20.0, 10.0)
    assert clock_of(times, 3, 20.0).begin == 1
    assert clock_of(times, 2, 20.0).begin == 2
    assert clock_of(times, None, 20.0).begin == 1
    assert clock_of(scheduler(30.0, 20.0, 20.0, begin_index=2), None, 20.0).begin == 2
    begun = scheduler(30.0, 20.0, 20.0)
    assert clock_of(begun, None, begun.timesteps[2]).begin == 2  # the element itself


def test_a_schedulers_kind_groups_its_calls() -> None:
    heun = clock_of(scheduler(30.0, 20.0, 20.0, order=2), None, 30.0)
    pndm = clock_of(scheduler(30.0, 20.0, 20.0, config={"skip_prk_steps": True}), None, 30.0)
    prk = scheduler(9.0, 8.0, 8.0, 7.0, 5.0, prk_timesteps=[9, 8, 8, 7])
    assert heun.schedule.steps == (0, 0, 1)
    assert pndm.schedule.steps == (0, 1, 1)
    assert clock_of(prk, None, 9.0).schedule.steps == (0, 0, 0, 0, 1)


def test_a_timestep_of_another_schedule_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"timestep 25, .*\(30, 20, 10"):
        clock_of(scheduler(30.0, 20.0, 10.0), None, 25.0)
