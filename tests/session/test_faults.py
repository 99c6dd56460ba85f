"""The pipeline is restored, and the block goes on, after a fault anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import xattn
from tests import tiny
from tests.helpers import (
    FaultError,
    assert_restored,
    draw,
    while_editing,
    while_recording,
)


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


TINY = {"height": 16, "width": 16, "steps": 2}


@dataclass
class Steady:
    """A pipeline that many faults pass through, and what it draws without one."""

    pipe: Any
    block: Callable[[Any], Any]
    plain: Any
    expected: Any


@pytest.fixture(scope="module", params=[while_recording, while_editing])
def steady(request: pytest.FixtureRequest) -> Steady:
    pipe, block = tiny.sd1(), request.param
    plain = draw(pipe, **TINY)
    with block(pipe, **TINY) as (drawn, _):
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

    with steady.block(steady.pipe, **TINY) as (drawn, trace):
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
    assert trace.run.done == TINY["steps"]
    np.testing.assert_array_equal(steady.plain, draw(steady.pipe, **TINY))


def test_steps_complete_before_a_fault_can_be_read(sd1: Any) -> None:
    def stop(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise FaultError
        return kwargs

    with pytest.raises(FaultError), xattn.record(sd1) as trace:
        draw(sd1, callback_on_step_end=stop)
    assert trace.run.done == 2
    assert len(trace.steps("red")) == 2
