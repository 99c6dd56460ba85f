"""A kept source gives the same edits later, for the model and schedule it was made by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import tiny
from tests.helpers import BLUE, CAR, NIGHT, QUIET, STEPS, Generator, close, never, run
from xattn.api.edit import edit
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_a_kept_source_gives_the_same_edits_without_being_sampled_again(
    scheduler: str, generator: Generator
) -> None:
    pipe = tiny.sd1(scheduler)
    twins = [generator(1), generator(2)]
    edits: list[Any] = [
        Refine(NIGHT),
        [Replace("car", "skateboard"), LocalBlend("car", subtract="red", threshold=0.8)],
        [Replace("red", "blue"), Reweight("blue", -1.0)],
    ]
    want = run(pipe, *edits, generator=[generator(1), generator(2)])
    first = run(pipe, [], generator=twins, keep_source=True)
    assert first.kept is not None
    assert first.kept.nbytes > 0
    batches: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    got = edit(pipe, CAR, *edits, source=first)
    hook.remove()
    assert set(batches) == {2 * 3 * 2}  # guided, three siblings, two seeds: no source
    for one, two in zip(got.seeds, want.seeds, strict=True):
        assert close(one.source, two.source)
        assert all(close(a, b) for a, b in zip(one.images, two.images, strict=True))
        assert one.masks[1] is not None
        assert two.masks[1] is not None
        assert torch.equal(one.masks[1], two.masks[1])
    assert got.trace is None


def test_a_source_is_kept_alone_bit_for_bit_and_edited_later(generator: Generator) -> None:
    pipe = tiny.sd1()
    edits: list[Any] = [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]
    want = run(pipe, edits)
    alone = run(pipe, keep_source=True)
    assert torch.equal(alone.source, pipe(CAR, generator=generator(), **QUIET).images[0])
    assert alone.images == ()
    assert alone.prompts == (CAR,)
    assert alone.trace is not None
    assert alone.trace.prompts == (CAR,)
    assert str(alone.plan) == f"source: {CAR}"
    seen: list[int] = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return {}

    first = edit(pipe, CAR, edits, source=alone, callback_on_step_end=watch, keep_source=True)
    second = edit(pipe, CAR, edits, source=first)
    for got in (first, second):
        assert torch.equal(got.source, alone.source)
        assert close(got.images[0], want.images[0])
    assert seen == list(range(STEPS))
    pictures = run(pipe, keep_source=True, output_type="pil", num_inference_steps=1)
    assert 64 <= pictures.strip(64).width < 2 * 64  # the source alone


def test_callbacks_are_not_kept_with_a_source() -> None:
    seen: list[int] = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return {}

    pipe = tiny.sd1()
    kept = run(pipe, keep_source=True, callback_on_step_end=watch, num_inference_steps=2)
    edit(pipe, CAR, Replace("red", "blue"), source=kept)
    assert seen == [0, 1]


def test_the_bytes_of_a_kept_source_are_known_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, asked = tiny.sd1(), []
    monkeypatch.setattr(
        "xattn.instruments.keeper.check_room_for", lambda what, nbytes, *_: asked.append(nbytes)
    )
    options: dict[str, Any] = {
        "height": 32,
        "width": 48,
        "generator": [torch.Generator(), torch.Generator()],
    }
    kept = run(pipe, keep_source=True, **options).kept
    assert kept is not None
    twice = sum(  # the text's keys, of which one call's stay
        (len(calls) - 1) * calls[0][1].nbytes
        for name, calls in kept.layers.items() if name.endswith("attn2")
    )  # fmt: skip
    assert twice > 0
    assert asked == [kept.nbytes + twice]


def test_a_source_that_does_not_fit_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    monkeypatch.setattr("xattn.records.room.free_bytes", lambda *_: (40_000, "the device"))
    with pytest.raises(MemoryError, match=r"keeping the source takes .* 40\.0 kB free; draw fewer"):
        run(pipe, keep_source=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pipe: setattr(pipe, "unet", tiny.sd1().unet), "by another UNet"),
        (lambda pipe: pipe.to(dtype=torch.bfloat16), "in torch.float32, and the UNet is now in"),
        (
            lambda pipe: setattr(pipe, "scheduler", tiny.make_scheduler("euler")),
            "with DDIMScheduler, and the pipeline has EulerDiscreteScheduler",
        ),
        (
            lambda pipe: setattr(
                pipe, "scheduler", type(pipe.scheduler).from_config(
                    pipe.scheduler.config, beta_start=0.001
                )
            ),
            "with another beta_start",
        ),
    ],
)  # fmt: skip
def test_a_kept_source_is_for_the_model_and_the_scheduler_it_was_made_by(
    change: Callable[[Any], Any], says: str
) -> None:
    pipe = tiny.sd1("ddim")
    kept = run(pipe, num_inference_steps=1, keep_source=True)
    change(pipe)
    pipe.unet.forward = never
    with pytest.raises(ValueError, match=f"source was drawn {says}.*keep_source=True"):
        edit(pipe, CAR, Replace("red", "blue"), source=kept)


def test_a_kept_source_is_for_its_schedule(generator: Generator) -> None:
    pipe = tiny.sd1("ddim")
    kept = run(pipe, num_inference_steps=2, keep_source=True)
    assert kept.kept is not None
    kept.kept.options["num_inference_steps"] = 3
    pipe.unet.conv_in.forward = never
    with pytest.raises(ValueError, match="in 2 denoiser calls from timestep 501"):
        edit(pipe, CAR, Replace("red", "blue"), source=kept)


def test_a_kept_source_refuses_what_it_can_not_give() -> None:
    pipe = tiny.sd1()
    plain_ = run(pipe, [], num_inference_steps=1)
    with pytest.raises(ValueError, match="keep_source=True"):
        edit(pipe, CAR, [], source=plain_)
    kept = run(pipe, [], num_inference_steps=1, keep_source=True, height=64, width=64)
    with pytest.raises(ValueError, match="belongs to the prompt"):
        edit(pipe, BLUE, [], source=kept)
    with pytest.raises(ValueError, match="num_inference_steps: the seed and options"):
        edit(pipe, CAR, [], source=kept, num_inference_steps=3)
    with pytest.raises(ValueError, match=r"trace=.*nothing is recorded"):
        edit(pipe, CAR, [], source=kept, trace={"words": ["car"]})
    with pytest.raises(ValueError, match="nothing to edit"):
        edit(pipe, CAR, source=kept)
    with pytest.raises(ValueError, match="side=32 reaches layer"):
        edit(pipe, CAR, Replace("red", "blue"), source=kept, side=32)
