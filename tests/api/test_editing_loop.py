"""Editing blocks: loops of one's own, and pipelines called inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.helpers import (
    BLUE,
    CAR,
    LATENT,
    NIGHT,
    QUIET,
    STEPS,
    Generator,
    close,
    encoded,
    loop,
    own,
    run,
    unchanged,
)
from xattn.api.editing import editing
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight


@pytest.mark.parametrize("guided", [False, True])
def test_a_loop_of_ones_own_equals_edit(guided: bool) -> None:
    pipe = tiny.sd1()
    edits: list[Any] = [Refine(NIGHT), [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]]
    want = run(pipe, *edits, guidance_scale=7.5 if guided else 1.0)
    with own(pipe, *edits) as session:
        states, negative = encoded(pipe, session.prompts)
        latents = loop(pipe, session.blend, states, negative if guided else None)
    for one, two in zip(latents, [want.source, *want.images], strict=True):
        assert close(one, two)
    assert session.trace is not None
    assert session.masks[0] is None
    assert session.masks[1] is not None
    assert session.masks[1].shape == (STEPS, 1, LATENT, LATENT)


@pytest.mark.parametrize("guided", [False, True])
def test_two_seeds_in_a_loop_of_ones_own_are_edited_apart(guided: bool) -> None:
    pipe = tiny.sd1()
    edits: list[Any] = [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]
    noise = torch.randn(2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(1))
    seeds = []
    for images, drawn in [(2, noise), (1, noise[:1]), (1, noise[1:])]:
        with own(pipe, edits, images=images) as session:
            states, negative = encoded(pipe, session.prompts, images)
            seeds.append(loop(pipe, session.blend, states, negative if guided else None, drawn))
    together, *alone = seeds
    for seed, one in enumerate(alone):
        assert close(together[[seed, 2 + seed]], one)
    assert not close(together[2], together[0])


@pytest.mark.parametrize(
    ("edits", "images", "actual", "guided", "says"),
    [
        (Replace("red", "blue"), 1, 2, True, "8 rows; 2 prompts x images=1 are 2, or 4"),
        (Replace("red", "blue"), 1, 2, False, "embeddings differ: .* correct images="),
        (Replace("red", "blue"), 2, 1, True, "embeddings differ: .* correct images="),
        (Replace("red", "blue"), 2, 1, False, "2 rows; 2 prompts x images=2 are 4, or 8"),
        (Reweight("red", 2.0), 1, 2, False, "both halves .* set images="),
        (Reweight("red", 2.0), 2, 1, True, "embeddings differ: .* correct images="),
    ],
)
def test_a_batch_of_other_images_than_were_said_is_refused_before_anything_is_edited(
    edits: Any, images: int, actual: int, guided: bool, says: str
) -> None:
    pipe = tiny.sd1()
    states, negative = encoded(pipe, [CAR, BLUE if isinstance(edits, Replace) else CAR], actual)
    calls: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=says), own(pipe, edits, images=images) as session:
        loop(pipe, session.blend, states, negative if guided else None)
    handle.remove()
    assert calls == []


def test_rows_and_embeds_say_which_rows_are_edited() -> None:
    pipe = tiny.sd1()
    edits: list[Any] = [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]
    states, negative = encoded(pipe, [CAR, BLUE])
    with own(pipe, edits) as session:
        want = loop(pipe, session.blend, states, negative)
    with own(pipe, edits, rows=slice(2, 4)) as session:
        assert torch.equal(loop(pipe, session.blend, states, negative), want)
    with own(pipe, edits, embeds=states) as session:
        assert close(loop(pipe, session.blend, states, negative, passes=2), want)
    with pytest.raises(RuntimeError, match="needs embeds="), own(pipe, edits) as session:
        loop(pipe, session.blend, states, negative, passes=2)
    with pytest.raises(ValueError, match="embeds has 4 rows; 2 prompts x images=1 are 2"):
        own(pipe, edits, embeds=states.repeat(2, 1, 1)).__enter__()
    with pytest.raises(ValueError, match="correct rows="), own(pipe, edits, rows=slice(1, 4)):
        loop(pipe, unchanged, states, negative)


BLENDED: list[Any] = [Replace("red", "blue"), LocalBlend("car", start=0.0)]


def blends_but_the_last(session: Any) -> Callable[[Tensor], Tensor]:
    """Blends after each step of a loop but its last."""
    done = 0

    def blend(latents: Tensor) -> Tensor:
        nonlocal done
        done += 1
        return session.blend(latents) if done < STEPS else latents

    return blend


def test_a_loop_that_never_blends_is_an_error_at_its_second_step() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    with pytest.raises(RuntimeError, match=r"step 0 .* session\.blend"), own(pipe, BLENDED):
        loop(pipe, unchanged, states)


def test_a_loop_that_leaves_out_the_last_blend_is_an_error_at_the_blocks_end() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    with pytest.raises(RuntimeError, match="step 4"), own(pipe, BLENDED) as session:
        loop(pipe, blends_but_the_last(session), states)


def test_an_error_of_the_users_is_not_hidden_by_the_blend_that_it_left_out() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    done = 0

    def interrupted(latents: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if done == STEPS:
            raise KeyboardInterrupt
        return session.blend(latents)

    with pytest.raises(KeyboardInterrupt), own(pipe, BLENDED) as session:
        loop(pipe, interrupted, states)


def test_a_loop_with_nothing_to_blend_needs_no_blend() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    with own(pipe, Replace("red", "blue")) as session:
        got = loop(pipe, unchanged, states)
    assert session.trace is not None
    assert session.trace.run.done == STEPS
    assert not close(got[1], got[0])


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_pipeline_called_without_the_callback_is_an_error_and_can_be_called_again(
    steps: int,
) -> None:
    pipe = tiny.sd1()
    asked: dict[str, Any] = QUIET | {"num_inference_steps": steps}
    with editing(pipe, CAR, BLENDED) as session:
        with pytest.raises(RuntimeError, match=r"callback_on_step_end=session\.callback"):
            pipe(session.prompts, **asked)
        pipe(session.prompts, callback_on_step_end=session.callback, **asked)
    assert session.masks[0] is not None
    assert len(session.masks[0]) == steps


def test_a_blend_that_was_left_out_leaves_the_processors_as_they_were() -> None:
    pipe = tiny.sd1()
    before = dict(pipe.unet.attn_processors)
    states, _ = encoded(pipe, [CAR, BLUE])
    with pytest.raises(RuntimeError), own(pipe, BLENDED):
        loop(pipe, unchanged, states)
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


class Waits(TorchDispatchMode):
    """Counts what waits for a device, and what is copied to one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "equal", "lift_fresh"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("edits", [
    [Replace("red", "blue"), LocalBlend("car", subtract="lawn")],
    [Refine(NIGHT), LocalBlend(mask=torch.ones(LATENT, LATENT), start=0.0)],
])  # fmt: skip
def test_no_step_waits_for_the_device_but_the_first_of_its_phase(edits: Any) -> None:
    pipe = tiny.sd1()
    unet, blends, handlers = pipe.unet, [], []
    with own(pipe, edits) as session:
        states, _ = encoded(pipe, session.prompts)
        editor = session._block.instruments[0]
        waits: list[list[str]] = []

        def called(*args: Any) -> Any:
            handlers.append(next(iter(editor.cross.values())).step)
            return original(*args)

        def blend(latents: Tensor) -> Tensor:
            blends.append(session.blend(latents))
            return blends[-1]

        original = unet.forward
        pipe.scheduler.set_timesteps(STEPS)
        latents = torch.randn(2, 4, LATENT, LATENT)
        unet.forward = called
        try:
            with torch.no_grad():
                for t in pipe.scheduler.timesteps:
                    with Waits() as mode:
                        predicted = unet(latents, t, states).sample
                    stepped = pipe.scheduler.step(predicted, t, latents).prev_sample
                    with mode:
                        latents = blend(stepped)
                    waits.append(mode.found)
        finally:
            del unet.forward
    # self-attention follows in steps 0 and 1, cross-attention in steps 0 to 3
    assert handlers[0] is handlers[1] is handlers[3] is not None
    assert waits[1] == waits[3] == []
    assert waits[0]


def test_a_pipeline_can_be_called_inside_editing(generator: Generator) -> None:
    pipe = tiny.sd1()
    edits: list[Any] = [[Replace("red", "blue"), LocalBlend("car", threshold=0.8)]]
    want = run(pipe, *edits)
    with editing(pipe, CAR, *edits) as session:
        twins = [generator(), generator()]
        got = pipe(
            session.prompts, generator=twins, callback_on_step_end=session.callback, **QUIET
        ).images
        assert close(got[1], want.images[0])
        with pytest.raises(ValueError, match=r"session\.prompts"):
            pipe("a dog", **QUIET)


def test_blending_is_for_the_whole_batch(generator: Generator) -> None:
    pipe = tiny.sd1()

    def wrong(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": session.blend(tensors["latents"][:1])}

    with (
        editing(pipe, CAR, [Replace("red", "blue"), LocalBlend("car")]) as session,
        pytest.raises(ValueError, match="1 rows"),
    ):
        pipe(session.prompts, callback_on_step_end=wrong, **QUIET)
