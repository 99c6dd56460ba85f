"""Steering moves the latents towards its goals, and nothing that it isn't asked to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests import tiny
from xattn.processors.wrapping import is_wrapped

PROMPT = "a red car and a boat"
LEFT = xattn.Place("boat", "left", inside=0.99, step_size=5.0, steps=1.0)
MET = xattn.Place("boat", (0.0, 0.0, 1.0, 1.0))


def draw(pipe: Any, prompt: str | list[str] = PROMPT, *seeds: int, **options: Any) -> Tensor:
    several = 1 if isinstance(prompt, str) else len(prompt)
    seeds = seeds or (0,)
    generators = [torch.Generator().manual_seed(seed) for _ in range(several) for seed in seeds]
    latents: Tensor = pipe(
        prompt, num_inference_steps=2, height=32, width=32, output_type="latent",
        generator=generators, num_images_per_prompt=len(seeds), **options,
    ).images  # fmt: skip
    return latents


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def plain(pipe: Any) -> Tensor:
    return draw(pipe)


def test_what_is_met_or_weighs_nothing_leaves_the_image_bit_for_bit(
    pipe: Any, plain: Tensor
) -> None:
    calls: list[int] = []

    def count(_: Any, args: Any, output: Tensor) -> None:
        if type(output) is Tensor:  # not a shape's first tracing of its memory
            calls.append(len(output))

    hook = pipe.unet.conv_in.register_forward_hook(count)
    with xattn.steer(pipe, MET) as steering:
        assert torch.equal(draw(pipe), plain)
    assert (steering.gradient_steps, steering.checks) == (0, 1)
    assert calls == [1, 2, 2]  # one pass of the prompt's row, and the run's own
    calls.clear()
    with xattn.steer(pipe, xattn.Present("boat", weight=0.0)) as steering:
        assert torch.equal(draw(pipe), plain)
    hook.remove()
    assert calls == [2, 2]
    assert len(steering.losses["Present('boat')"]) == 1  # it is measured all the same
    with xattn.steer(pipe):
        assert torch.equal(draw(pipe), plain)


def test_a_gradient_step_lowers_the_loss_of_the_call_that_follows(pipe: Any, plain: Tensor) -> None:
    unsteered = xattn.Place("boat", "left", weight=0.0, steps=1.0)
    with xattn.steer(pipe, unsteered) as before:
        draw(pipe)
    with xattn.steer(pipe, LEFT, rounds=3) as steering:
        image = draw(pipe)
        assert steering.at_most(2) == 6  # three rounds in each of two steps
    (was, _), (now, _) = before.losses[str(unsteered)], steering.losses[str(LEFT)]
    assert now[0] < was[0]
    assert 2 <= steering.gradient_steps <= 6
    assert steering.nbytes
    assert not torch.equal(image, plain)


def test_the_scheduler_steps_from_what_the_denoiser_saw() -> None:
    pipe = tiny.sd1("euler")  # its denoiser sees the latents divided by a number
    seen: list[Tensor] = []
    stepped: list[Tensor] = []
    step = pipe.scheduler.step

    def watching(output: Tensor, t: Any, sample: Tensor, **options: Any) -> Any:
        stepped.append(pipe.scheduler.scale_model_input(sample, t))
        return step(output, t, sample, **options)

    pipe.scheduler.step = watching
    with xattn.steer(pipe, LEFT):
        hook = pipe.unet.conv_in.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        draw(pipe)
        hook.remove()
    own = [sample for sample in seen if len(sample) == 2]
    assert len(own) == 2
    for one, two in zip(own, stepped, strict=True):
        torch.testing.assert_close(one[1:], two)
        assert torch.equal(one[0], one[1])
    assert pipe.scheduler.step is watching


def test_present_refines_until_its_threshold_and_no_longer_than_said(pipe: Any) -> None:
    goal = xattn.Present("boat", method="excite", thresholds={0.0: 0.99}, refinements=3)
    with xattn.steer(pipe, goal, rounds=1, move=None) as steering:
        draw(pipe)
    assert steering.gradient_steps == 3 == steering.at_most(2)


def test_a_recording_around_it_or_inside_it_sees_what_was_steered(pipe: Any) -> None:
    with (
        xattn.record(pipe, dtype=torch.float32) as outer,
        xattn.steer(pipe, LEFT) as steering,
        xattn.record(pipe, dtype=torch.float32) as inner,
    ):
        image = draw(pipe)
    with xattn.steer(pipe, LEFT):
        assert torch.equal(draw(pipe), image)
    assert outer.run.done == inner.run.done == 2
    one, two = (torch.as_tensor(trace.heatmap("boat").array.copy()) for trace in (outer, inner))
    torch.testing.assert_close(one, two)
    run = outer.run
    judged = [n for n, layer in enumerate(run.layers) if layer.grid == (4, 4)]  # a quarter
    place = run.positions.index(run.prompts[0].positions("boat")[0])
    maps = [torch.as_tensor(run.store.read(n, [0]))[0, 0].mean(0)[place] for n in judged]
    heat = torch.stack(maps).mean(0)
    share = float(heat[:, :2].sum() / heat.sum())
    assert steering.losses[str(LEFT)][0][0] == pytest.approx((1 - share) ** 2, rel=1e-3)


def test_images_of_a_batch_are_steered_each_for_itself(pipe: Any, plain: Tensor) -> None:
    with xattn.steer(pipe, LEFT) as steering:
        both = draw(pipe, PROMPT, 0, 1)
        alone = draw(pipe, PROMPT, 1)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    with xattn.steer(pipe, LEFT) as steering:  # the second prompt has no boat
        mixed = draw(pipe, [PROMPT, "a red car"])
    unsteered = draw(pipe, [PROMPT, "a red car"])
    assert torch.equal(mixed[1], unsteered[1])
    assert not torch.equal(mixed[0], unsteered[0])
    assert torch.tensor(steering.losses[str(LEFT)][0]).isnan().tolist() == [False, True]


def test_sdxl_in_half_precision_is_steered() -> None:
    pipe = tiny.sdxl().to(torch.bfloat16)
    plain = draw(pipe)
    with xattn.steer(pipe, xattn.Place("boat", "right"), rounds=3) as steering:
        image = draw(pipe)
    assert image.isfinite().all()
    assert image.dtype == torch.bfloat16
    assert not torch.equal(image, plain)
    assert steering.gradient_steps >= 2


def test_joint_attention_is_steered() -> None:
    from tests.tiny import transformers

    pipe = transformers.sd3(t5=False)
    options: dict[str, Any] = {"max_sequence_length": 8}
    plain = draw(pipe, **options)
    with xattn.steer(pipe, LEFT) as steering:
        image = draw(pipe, **options)
    assert steering.gradient_steps >= 2
    assert not torch.equal(image, plain)


def test_the_pipeline_is_left_as_it_was_found_even_by_an_error(pipe: Any, plain: Tensor) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    flags = [weight.requires_grad for weight in pipe.unet.parameters()]
    with pytest.raises(ZeroDivisionError), xattn.steer(pipe, LEFT):
        draw(pipe, callback_on_step_end=fail)
    assert "step" not in vars(pipe.scheduler)
    assert flags == [weight.requires_grad for weight in pipe.unet.parameters()]
    assert not any(is_wrapped(p) for p in pipe.unet.attn_processors.values())
    assert not pipe.unet._forward_pre_hooks
    assert torch.equal(draw(pipe), plain)


def test_initial_noise_meets_goals_before_anything_is_drawn(pipe: Any, plain: Tensor) -> None:
    options: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2}

    def noise_for(goal: Any, **more: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return xattn.initial_noise(pipe, PROMPT, goal, generator=generator, **options, **more)

    same = noise_for(MET)
    latents = pipe(PROMPT, latents=same, output_type="latent", **options).images
    torch.testing.assert_close(latents, plain, rtol=1e-4, atol=1e-4)
    found = noise_for(LEFT, rounds=2, rate=0.1)
    assert 0.7 < float(found.std()) < 1.4
    losses = []
    unsteered = xattn.Place("boat", "left", weight=0.0)
    for noise in (same, found):
        with xattn.steer(pipe, unsteered) as measured:
            pipe(PROMPT, latents=noise, output_type="latent", **options)
        losses.append(measured.losses[str(unsteered)][0][0])
    assert losses[1] < losses[0]
    assert not pipe.unet._forward_pre_hooks
    with pytest.raises(ValueError, match="initial_noise needs a goal"):
        xattn.initial_noise(pipe, PROMPT)


def test_of_several_noises_each_image_takes_the_best(pipe: Any) -> None:
    prompts = [PROMPT, "a boat"]
    options: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1}
    unsteered = xattn.Place("boat", "left", weight=0.0)

    def loss_of(noise: Tensor) -> tuple[float, ...]:
        with xattn.steer(pipe, unsteered) as measured:
            pipe(prompts, latents=noise, output_type="latent", **options)
        return measured.losses[str(unsteered)][0]

    def noise_of(tries: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return xattn.initial_noise(
            pipe, prompts, xattn.Place("boat", "left"), tries=tries, rounds=0,
            generator=generators, **options,
        )  # fmt: skip

    given, best = noise_of(1), noise_of(4)
    other = torch.Generator().manual_seed(0)
    rest = [torch.randn(given.shape, generator=other) for _ in range(3)]
    losses = torch.tensor([loss_of(noise) for noise in (given, *rest)])
    torch.testing.assert_close(torch.tensor(loss_of(best)), losses.min(0).values, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="tries=0"):
        noise_of(0)


def test_wrong_asks_are_sentences(pipe: Any) -> None:
    with pytest.raises(TypeError, match="'mug' is not a goal; goals are Present"):
        xattn.steer(pipe, "mug").__enter__()  # type: ignore[arg-type]
    with (
        xattn.steer(pipe, xattn.Present("mug")),
        pytest.raises(xattn.WordError, match="'mug' is not in the prompt"),
    ):
        draw(pipe)
    with pytest.raises(TypeError, match="steer needs a pipeline"):
        xattn.steer(pipe.unet, MET).__enter__()
    loop = xattn.Loop(pipe.unet, tokenizer=pipe.tokenizer, prompt=PROMPT)
    with pytest.raises(ValueError, match="steering a loop needs its scheduler"):
        xattn.steer(loop, MET).__enter__()
