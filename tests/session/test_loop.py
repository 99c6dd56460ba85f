"""What the calls of a loop of one's own mean: made-up calls, and a denoiser that never runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs import prompt
from xattn.models.family import DenoiserCall
from xattn.session.loop import Loop, LoopOrigin
from xattn.session.origin import Following, Turn
from xattn.session.sampling import Asked

CAR, BOAT = prompt("a red car", 6), prompt("two boats", 6)


class UNet2DConditionModel(nn.Module):
    """Its name is all that its family asks for."""


def states(*rows: float) -> Tensor:
    return torch.tensor(rows).float()[:, None, None].expand(-1, 6, 2).clone()


def origin(*, steps: Any = None, **other: Any) -> LoopOrigin:
    timesteps = None if steps is None else torch.tensor(steps)
    scheduler = None if steps is None else SimpleNamespace(timesteps=timesteps, config={})
    loop = Loop(UNet2DConditionModel(), tokenizer=object(), scheduler=scheduler, **other)
    return LoopOrigin(loop, [CAR])


class Followed:
    """A run whose calls an origin is asked about."""

    def __init__(self, origin: LoopOrigin) -> None:
        self.origin = origin
        self.following: Following | None = None
        self.calls: list[DenoiserCall] = []

    def call(self, timestep: float, *rows: float) -> Turn:
        text = states(*(rows or (1,)))
        call = DenoiserCall(torch.zeros(len(text), 4, 2, 2), (2, 2), timestep, text)
        asked = self.origin.asked()
        turn = self.origin.turn(call, self.following, asked, None)
        if turn is Turn.FIRST:
            self.following = self.origin.follow(call, asked)
        if turn is not Turn.PASS:
            assert self.following is not None
            self.following.place(call)
            self.following.number += 1
            self.calls.append(call)
        return turn


def test_a_loop_says_at_once_what_it_is_asked_for() -> None:
    assert origin().asked().prompts == (CAR,)
    assert [prefix for prefix, _ in origin().components()] == [""]
    with origin().watched(lambda event: None):
        pass


def test_a_scheduled_loop_goes_from_call_to_call() -> None:
    run = Followed(origin(steps=(30.0, 20.0, 20.0)))
    assert [run.call(t) for t in (30, 20, 20)] == [Turn.FIRST, Turn.NEXT, Turn.NEXT]
    assert [c.step for c in run.calls] == [0, 1, 2]
    assert [c.ends_step for c in run.calls] == [True] * 3


def test_a_loop_broken_off_begins_anew() -> None:
    run = Followed(origin(steps=(30.0, 20.0, 10.0)))
    assert [run.call(t) for t in (30, 20, 30)] == [Turn.FIRST, Turn.NEXT, Turn.FIRST]


def test_an_untimely_call_is_refused() -> None:
    run = Followed(origin(steps=(30.0, 20.0, 10.0)))
    run.call(30)
    with pytest.raises(RuntimeError, match=r"timestep 10 where .* next is 20: .*needs embeds="):
        run.call(10)


def test_without_a_scheduler_each_new_timestep_is_a_step_and_a_rise_begins_a_run() -> None:
    run = Followed(origin())
    turns = [run.call(t) for t in (30, 20, 20, 10)]
    assert turns == [Turn.FIRST, Turn.NEXT, Turn.NEXT, Turn.NEXT]
    assert [c.step for c in run.calls] == [0, 1, 1, 2]
    assert [c.begins_step for c in run.calls] == [True, True, False, True]
    assert not any(c.ends_step for c in run.calls)  # nobody knows
    assert run.call(30) is Turn.FIRST


@pytest.mark.parametrize("steps", [(30.0, 20.0), None], ids=["scheduler", "no scheduler"])
def test_two_passes_without_embeddings_are_refused(steps: Any) -> None:
    run = Followed(origin(steps=steps))
    run.call(30, 0)
    with pytest.raises(RuntimeError, match="embeds="):
        run.call(30, 1)


@pytest.mark.parametrize("steps", [(30.0, 20.0), None], ids=["scheduler", "no scheduler"])
def test_embeddings_tell_guidances_other_pass(steps: Any) -> None:
    run = Followed(origin(steps=steps, embeds=states(1)))
    calls = ((30, 0), (30, 1), (20, 0), (20, 1))
    turns = [Turn.PASS, Turn.FIRST, Turn.PASS, Turn.NEXT]
    assert [run.call(*call) for call in calls] == turns
    assert [c.step for c in run.calls] == [0, 1]


def test_a_text_written_into_in_place_is_another_text() -> None:
    given = origin()
    text = states(0)
    call = DenoiserCall(torch.zeros(1, 4, 2, 2), (2, 2), 30.0, text)
    asked = given.asked()
    assert given.turn(call, None, asked, None) is Turn.FIRST
    following = given.follow(call, asked)
    following.place(call)
    text.fill_(1)
    with pytest.raises(RuntimeError, match="twice at timestep 30"):
        given.turn(call, following, asked, None)


def images_of(batch: int, **given: Any) -> tuple[int, ...]:
    """For each image of a recorded loop of two prompts, which of them it follows."""
    loop = Loop(UNet2DConditionModel(), tokenizer=object(), **given)
    call = DenoiserCall(torch.zeros(batch, 4, 2, 2), (2, 2), 30.0, None)
    return LoopOrigin(loop).follow(call, Asked((CAR, BOAT), (0, 1), loop.embeds)).asked.prompt_of


@pytest.mark.parametrize(
    ("rows", "given", "prompt_of"),
    [
        (2, {}, (0, 1)),
        (4, {}, (0, 1)),  # guidance
        (8, {}, (0, 0, 1, 1)),  # guidance, two images each
        (3, {"rows": slice(1, 3)}, (0, 1)),
        (5, {"rows": slice(1, 5)}, (0, 0, 1, 1)),
        (9, {"embeds": states(1, 1, 2, 2)}, (0, 0, 1, 1)),
    ],
)
def test_images_are_as_many_as_the_batch_has_room_for(
    rows: int, given: Any, prompt_of: Any
) -> None:
    assert images_of(rows, **given) == prompt_of


def test_rows_that_are_no_multiple_of_the_prompts_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"3 rows follow the prompts, but there are 2 prompts"):
        images_of(4, rows=slice(0, 3))


def test_an_edited_loops_images_are_those_it_says() -> None:
    loop = Loop(UNet2DConditionModel(), tokenizer=object(), images=2)
    assert LoopOrigin(loop, [CAR, BOAT]).asked().prompt_of == (0, 0, 1, 1)
    loop = Loop(UNet2DConditionModel(), tokenizer=object(), embeds=states(1))
    with pytest.raises(ValueError, match=r"embeds has 1 rows; 2 prompts x images=1 are 2"):
        LoopOrigin(loop, [CAR, BOAT])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"unet": object()}, TypeError, "not object"),
        ({"tokenizer": None}, ValueError, "tokenizer="),
        ({"images": 0}, ValueError, "images=0"),
        ({"images": 1.5}, ValueError, "images=1.5"),
        ({"images": True}, ValueError, "images=True"),
    ],
)
def test_a_loop_checks_itself(given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Loop(**{"unet": UNet2DConditionModel(), "tokenizer": object(), **given})
