"""The block alone: a denoiser of one layer, an origin that says what calls mean, and diaries."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import CHANNELS, TOKENS, Diary, FakeOrigin
from tests.runs import prompt
from xattn.session import events
from xattn.session.instrument import Instrument
from xattn.session.origin import Turn
from xattn.session.sampling import Asked
from xattn.session.session import Block, opened

CAR = Asked((prompt("a red car", TOKENS),), (0,))
BOAT = Asked((prompt("two boats", TOKENS),), (0,))
FIRST, NEXT, PASS, FRESH = Turn.FIRST, Turn.NEXT, Turn.PASS, Turn.FRESH
CALL = ["before_call", "after_call"]
RUN = ["begin", *CALL, *CALL, *CALL, "end"]


def call(origin: FakeOrigin, timestep: float = 30.0, rows: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(rows, CHANNELS, 2, 2, generator=random)
    text = torch.randn(rows, TOKENS, CHANNELS, generator=random)
    result: Tensor = origin.denoiser(sample, timestep, encoder_hidden_states=text)
    return result


def descend(origin: FakeOrigin) -> None:
    for timestep in origin.timesteps:
        call(origin, float(timestep))


def ask(origin: FakeOrigin, asked: Asked = CAR) -> None:
    assert origin.receive is not None
    origin.receive(events.Asking())
    origin.receive(events.Encoded(asked))


def processor(origin: FakeOrigin) -> Any:
    attn: Any = origin.denoiser.attn
    return attn.processor


def hooks(origin: FakeOrigin) -> int:
    return len(origin.denoiser._forward_pre_hooks) + len(origin.denoiser._forward_hooks)


# -- moments ---------------------------------------------------------------------------------------


def test_moments_come_in_order_and_instruments_in_turn() -> None:
    moments: list[str] = []
    origin = FakeOrigin(FIRST, NEXT, NEXT, known=CAR)
    with opened(origin, [Diary("1 ", moments), Diary("2 ", moments)]) as block:
        descend(origin)
        assert block.sampling is None  # the run ended with its last call
        block.after_step(torch.zeros(1))
    assert moments == [f"{n} {moment}" for moment in [*RUN, "after_step"] for n in (1, 2)]


def test_calls_know_their_step_and_their_rows() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST, NEXT, NEXT, timesteps=(30.0, 20.0, 20.0), order=2, known=CAR)
    with opened(origin, [diary]):
        descend(origin)
    found = [(c.number, c.step, c.begins_step, c.ends_step) for c in diary.calls]
    assert found == [(0, 0, True, False), (1, 0, False, True), (2, 1, True, True)]
    assert [c.conditional for c in diary.calls] == [(slice(1, 2),)] * 3
    assert all(isinstance(c.output, Tensor) for c in diary.calls)


def test_a_sampling_says_what_the_run_is_and_is_one_for_all() -> None:
    diaries = Diary(), Diary()
    origin = FakeOrigin(FIRST, known=CAR)
    with opened(origin, diaries) as block:
        call(origin)
        sampling = block.sampling
        assert sampling is not None
    assert diaries[0].samplings == diaries[1].samplings == [sampling]
    assert (sampling.latent, sampling.steps, sampling.images) == ((2, 2), 3, 1)
    assert (sampling.asked, sampling.facts) == (CAR, {"model": "Denoiser"})


def test_the_output_is_the_models_own() -> None:
    origin = FakeOrigin(FIRST, known=CAR)
    with torch.no_grad():
        want = call(origin)
        with opened(origin, [diary := Diary()]):
            assert torch.equal(call(origin), want)
    assert len(diary.handler.calls) == 1
    assert diary.handler.calls[0].query.shape == (2, 2, 4, 4)


# -- what calls mean -------------------------------------------------------------------------------


def test_a_call_that_is_passed_is_seen_by_nobody() -> None:
    diary = Diary()
    origin = FakeOrigin(PASS, FIRST, PASS, NEXT, known=CAR)
    with opened(origin, [diary]) as block:
        for timestep in (30, 30, 20, 20):
            call(origin, timestep)
        assert block.sampling is not None
        assert diary.moments == ["begin", *CALL, *CALL]
    assert len(diary.handler.calls) == 2
    assert [c.number for c in diary.calls] == [0, 1]
    assert diary.moments[-1] == "end"  # a run cut short ends with its block


def test_a_first_call_ends_the_run_under_way() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST, NEXT, FIRST, known=CAR)
    with opened(origin, [diary]):
        for timestep in (30, 20, 30):
            call(origin, timestep)
    assert diary.moments == ["begin", *CALL, *CALL, "end", "begin", *CALL, "end"]
    assert len({id(sampling) for sampling in diary.samplings}) == 2


def test_a_fresh_run_is_of_what_was_asked_meanwhile() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST, NEXT, FRESH)
    with opened(origin, [diary]):
        ask(origin)
        call(origin)
        ask(origin, BOAT)
        call(origin, 20)  # the first run goes on: somebody may have wanted embeddings only
        assert origin.heard[-1][1:] == (CAR, BOAT)
        call(origin)
    assert [sampling.asked for sampling in diary.samplings] == [CAR, BOAT]


def test_nothing_is_asked_for_behind_a_run() -> None:
    origin = FakeOrigin(FIRST, NEXT, NEXT, PASS)
    with opened(origin, [Diary()]):
        ask(origin)
        descend(origin)
        call(origin)
    assert origin.heard[0] == (None, CAR, None)
    assert origin.heard[-1] == (None, None, None)


def test_pictures_are_those_of_the_run_that_drew_them() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST, NEXT, NEXT)
    with opened(origin, [diary]):
        ask(origin)
        descend(origin)
        assert origin.receive is not None
        origin.receive(events.Pictures(["picture"]))
        origin.receive(events.Pictures(["somebody else's"]))
        origin.receive(events.Ended())
    assert diary.moments == [*RUN, "pictures"]
    assert diary.ended == [True]


def test_a_pipelines_end_ends_a_run_cut_short() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST)
    with opened(origin, [diary]) as block:
        ask(origin)
        call(origin)
        assert origin.receive is not None
        origin.receive(events.Ended())
        assert block.sampling is None
    assert diary.moments == ["begin", *CALL, "end"]


# -- faults ----------------------------------------------------------------------------------------


def test_a_fault_in_begin_leaves_nothing_behind() -> None:
    moments: list[str] = []
    good, bad, last = Diary("1 ", moments), Diary("2 ", moments), Diary("3 ", moments)
    bad.fault = "begin"
    origin = FakeOrigin(FIRST, FIRST, known=CAR)
    with opened(origin, [good, bad, last]) as block:
        with pytest.raises(ZeroDivisionError):
            call(origin)
        assert moments == ["1 begin", "2 begin", "1 end", "2 end"]
        assert block.sampling is None
        assert block.guard.thread is None
        bad.fault = ""
        call(origin)
        assert origin.heard[-1][0] is None  # nothing is followed
        assert block.sampling is last.samplings[0]
    assert len(last.handler.calls) == 1


def test_a_text_of_somebody_elses_begins_no_run() -> None:
    diary = Diary()
    other = replace(CAR, embeds=torch.full((1, TOKENS, CHANNELS), 9.0))
    origin = FakeOrigin(FIRST, known=other)
    with opened(origin, [diary]), pytest.raises(RuntimeError, match="received another text"):
        call(origin)
    assert diary.moments == []


@pytest.mark.parametrize("fault", ["before_call", "after_call", "end"])
def test_the_denoiser_is_restored_after_an_instruments_fault(fault: str) -> None:
    diary = Diary()
    diary.fault = fault
    origin = FakeOrigin(FIRST, known=CAR)
    before = processor(origin)
    with pytest.raises(ZeroDivisionError), opened(origin, [Diary(), diary]):
        call(origin)
    assert processor(origin) is before
    assert hooks(origin) == 0
    assert origin.receive is None


def test_the_denoiser_is_restored_after_a_fault_in_the_block() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST, known=CAR)
    before = processor(origin)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ZeroDivisionError))
        stack.enter_context(opened(origin, [diary]))
        call(origin)
        assert processor(origin) is not before
        raise ZeroDivisionError
    assert processor(origin) is before
    assert hooks(origin) == 0
    assert diary.moments == ["begin", *CALL, "end"]


def test_the_denoiser_is_restored_where_it_could_not_be_watched() -> None:
    class Unwatched(FakeOrigin):
        def watched(self, receive: Any) -> Any:
            raise ZeroDivisionError

    origin = Unwatched()
    before = processor(origin)
    with pytest.raises(ZeroDivisionError), opened(origin, [Diary()]):
        pass
    assert processor(origin) is before
    assert hooks(origin) == 0


def test_a_layer_that_was_left_out_is_refused() -> None:
    for turns, message in (((), "out of xattn's reach"), ((NEXT,), "attn was left out")):
        origin = FakeOrigin(FIRST, *turns, known=CAR)
        with opened(origin, [Diary()]):
            if turns:
                call(origin)
            origin.denoiser.skips = True  # type: ignore[assignment]
            with pytest.raises(RuntimeError, match=message):
                call(origin, 20)


def test_blocks_left_in_the_wrong_order_still_restore() -> None:
    origin = FakeOrigin(known=CAR)
    before = processor(origin)
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(opened(origin, [Diary()]))
    inner.enter_context(opened(origin, [Diary()]))
    outer.close()
    assert processor(origin) is not before
    inner.close()
    assert processor(origin) is before
    assert hooks(origin) == 0


# -- between steps ---------------------------------------------------------------------------------


def test_after_step_acts_once_a_step_and_instruments_build_on_each_other() -> None:
    origin = FakeOrigin(FIRST, NEXT, NEXT, timesteps=(30.0, 20.0, 20.0), order=2, known=CAR)
    with opened(origin, [Diary(), Diary()]) as block:
        latents = torch.zeros(1)
        assert block.after_step(latents) is latents  # no step has ended
        call(origin, 30)
        assert block.after_step(latents) is latents  # between the halves of one
        call(origin, 20)
        assert block.after_step(latents) == 2
        assert block.after_step(latents) is latents  # it was done
        call(origin, 20)
        assert block.after_step(latents) == 2  # the last, behind the run's end


class Between(Instrument):
    between_steps = True


def test_a_last_step_that_was_left_out_is_refused_by_the_next_run() -> None:
    origin = FakeOrigin(FIRST, NEXT, NEXT, FIRST, FIRST, known=CAR)
    with opened(origin, [Diary(), Between()]) as block:
        for timestep in (30, 20, 10):
            call(origin, timestep)
            if timestep > 10:
                block.after_step(torch.zeros(1))
        with pytest.raises(RuntimeError, match=r"step 2 ended .*session\.blend"):
            call(origin, 30)
        call(origin, 30)  # it was told once


def test_a_step_that_was_left_out_is_refused() -> None:
    origin = FakeOrigin(FIRST, NEXT, NEXT, NEXT, known=CAR)
    with opened(origin, [Diary(), Between()]) as block:
        call(origin, 30)
        with pytest.raises(RuntimeError, match=r"step 0 ended .*session\.blend"):
            call(origin, 20)
        call(origin, 20)
        block.after_step(torch.zeros(1))
        call(origin, 10)
        with pytest.raises(RuntimeError, match=r"step 2 ended .*session\.blend"):
            block.check_stepped()
        block.check_stepped()  # said once


def test_a_pipelines_last_step_that_was_left_out_is_refused() -> None:
    origin = FakeOrigin(FIRST, NEXT, NEXT)
    with opened(origin, [Between()]) as block:
        ask(origin)
        for timestep in (30, 20, 10):
            call(origin, timestep)
            if timestep > 10:
                block.after_step(torch.zeros(1))
        with pytest.raises(RuntimeError, match=r"step 2 ended .*callback_on_step_end"):
            block.receive(events.Ended())


def test_steps_may_be_left_out_where_nothing_acts_between_them() -> None:
    origin = FakeOrigin(FIRST, NEXT, NEXT, known=CAR)
    with opened(origin, [Diary()]) as block:
        descend(origin)
        block.check_stepped()


# -- threads ---------------------------------------------------------------------------------------


def elsewhere(act: Any) -> BaseException | None:
    """Run something in another thread, and return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_second_thread_waits_for_the_end_of_the_run() -> None:
    diary = Diary()
    origin = FakeOrigin(FIRST, NEXT, NEXT, FIRST, known=CAR)
    with opened(origin, [diary]):
        call(origin, 30)
        assert "another thread" in str(elsewhere(lambda: call(origin, 30)))
        call(origin, 20)
        call(origin, 10)
        assert elsewhere(lambda: call(origin, 30)) is None
    assert diary.moments == [*RUN, "begin", *CALL, "end"]


def test_a_pipelines_run_is_its_threads_from_its_prompts_on() -> None:
    origin = FakeOrigin(FIRST)
    with opened(origin, [Diary()]) as block:
        ask(origin)
        assert "another thread" in str(elsewhere(lambda: call(origin)))
        assert block.sampling is None
        call(origin)
        assert "another thread" in str(elsewhere(lambda: ask(origin, BOAT)))


def test_a_block_without_instruments_wraps_nothing() -> None:
    origin = FakeOrigin()
    before = processor(origin)
    with Block(origin, []).installed():
        assert processor(origin) is before
