"""Edits of every kind of pipeline, scheduler, guidance and noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from tests import dense, tiny
from tests.helpers import (
    BLUE,
    CAR,
    CASES,
    LATENT,
    NIGHT,
    QUIET,
    SIDE,
    SMALL,
    STEPS,
    Generator,
    LargestShapes,
    close,
    encoded,
    own,
    picture,
    plain,
    run,
)
from xattn.api.edit import edit
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight

TWICE = {"heun", "kdpm2"}


@pytest.mark.parametrize("scheduler", sorted(tiny.SCHEDULERS))
def test_every_scheduler_counts_steps_and_blends_once_in_each(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    pipe.scheduler.set_timesteps(STEPS)
    times = pipe.scheduler.timesteps.tolist()
    if scheduler in TWICE:
        steps = [call // 2 for call in range(len(times))]
    else:
        steps = [len(set(times[: call + 1])) - 1 for call in range(len(times))]
    steps.append(-1)
    edits, text, make = CASES["local blend"]
    reference = dense.Dense(
        [make()],
        steps[-2] + 1,
        (LATENT, LATENT),
        step_of_call=steps.__getitem__,
        calls_of_step=steps.count,
    )
    want = reference.run(pipe, [CAR, text], 0, **SMALL)
    got = run(pipe, edits)
    assert close(got.source, want[0])
    assert close(got.images[0], want[1])
    assert got.masks[0] is not None
    assert len(got.masks[0]) == steps[-2] + 1


@pytest.mark.parametrize("explicit", [False, True], ids=["", "explicit processors"])
@pytest.mark.parametrize(
    "edits", [Replace("red", "blue"), Reweight("red", 3.0), [Refine(NIGHT), Reweight("night", 2.0)]]
)
def test_an_edits_gradients_agree_with_finite_differences(edits: Any, explicit: bool) -> None:
    pipe = tiny.sd1().to(torch.float64)
    if explicit:
        pipe.unet.set_attn_processor(AttnProcessor())
    g = torch.Generator().manual_seed(0)
    where, way, weights = (
        torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(3)
    )

    def value(latents: Tensor) -> Tensor:
        with own(pipe, edits) as session:
            states = encoded(pipe, session.prompts)[0]
            first = pipe.scheduler.timesteps[0]
            predicted: Tensor = pipe.unet(latents, first, states.detach()).sample
        return (predicted * weights).sum()

    where.requires_grad_()
    (gradient,) = torch.autograd.grad(value(where), where)
    with torch.no_grad():
        around = value(where + 1e-5 * way) - value(where - 1e-5 * way)
    expected = float(around) / 2e-5
    assert float((gradient * way).sum()) == pytest.approx(expected, rel=1e-5)


def test_no_queries_by_queries_matrix_is_made_in_a_whole_edit() -> None:
    pipe = tiny.sd1()
    with LargestShapes() as seen:
        run(pipe, [Replace("red", "blue", self_steps=1.0), LocalBlend("car")], side=32,
            height=64, width=64, num_inference_steps=2)  # fmt: skip
    assert [s for s in seen.shapes if 1024 in s]
    assert not [s for s in seen.shapes if list(s).count(1024) > 1]


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "lcm"])
def test_all_rows_draw_the_sources_noise(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    options: dict[str, Any] = {"eta": 1.0} if scheduler == "ddim" else {}
    got = run(pipe, [], Replace("red", "blue", cross_steps=0.0, self_steps=0.0), **options)
    assert torch.equal(got.images[0], got.source)
    assert close(got.source, plain(pipe, CAR, **options)[0])
    assert close(got.images[1], plain(pipe, BLUE, **options)[0])


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_the_generator_is_left_where_a_plain_run_leaves_it(
    scheduler: str, generator: Generator
) -> None:
    pipe, one, two = tiny.sd1(scheduler), generator(3), generator(3)
    pipe(CAR, generator=one, **QUIET)
    edit(pipe, CAR, Replace("red", "blue"), generator=two, **QUIET)
    assert torch.equal(one.get_state(), two.get_state())


def test_without_a_generator_torchs_own_is_used() -> None:
    pipe = tiny.sd1()
    torch.manual_seed(7)
    want, after = pipe(CAR, **QUIET).images, torch.rand(3)
    torch.manual_seed(7)
    got = edit(pipe, CAR, Replace("red", "blue"), **QUIET)
    assert close(got.source, want[0])
    assert torch.equal(torch.rand(3), after)


def test_several_seeds_give_a_result_each(generator: Generator) -> None:
    pipe = tiny.sd1()
    edits: list[Any] = [Replace("red", "blue"), [Refine(NIGHT), LocalBlend("car", threshold=0.8)]]
    got = run(pipe, *edits, generator=[generator(1), generator(2)])
    assert len(got.seeds) == 2
    assert got.seeds[0] is got
    for seed, one in zip((1, 2), got.seeds, strict=True):
        alone = run(pipe, *edits, seed=seed)
        assert close(one.source, alone.source)
        assert all(close(a, b) for a, b in zip(one.images, alone.images, strict=True))
        assert one.masks[0] is None
        assert one.masks[1] is not None
        assert alone.masks[1] is not None
        assert torch.equal(one.masks[1], alone.masks[1])


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_one_generator_for_several_images_draws_as_in_a_plain_run(
    scheduler: str, generator: Generator
) -> None:
    pipe, one, two = tiny.sd1(scheduler), generator(3), generator(3)
    want = pipe(CAR, generator=one, num_images_per_prompt=3, **QUIET).images
    got = edit(
        pipe, CAR, Replace("red", "blue"), [], generator=two, num_images_per_prompt=3, **QUIET
    )
    for i, single in enumerate(got.seeds):
        assert close(single.source, want[i])
        assert torch.equal(single.images[1], single.source)
    assert torch.equal(one.get_state(), two.get_state())


def test_latents_of_the_users_own_are_shared(generator: Generator) -> None:
    pipe = tiny.sd1()
    latents = torch.randn(1, 4, LATENT, LATENT, generator=generator(9))
    got = run(pipe, [], Replace("red", "blue"), latents=latents)
    assert close(got.source, plain(pipe, CAR, latents=latents)[0])
    assert torch.equal(got.images[0], got.source)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"negative_prompt": "a dog"},
        {"height": 32, "width": 48},
        {"guidance_rescale": 0.5},
    ],
)
def test_plain_options_go_to_all_rows(options: dict[str, Any]) -> None:
    pipe = tiny.sd1()
    got = run(pipe, Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
              [Replace("car", "boat"), LocalBlend("car", threshold=0.8)], **options)  # fmt: skip
    assert close(got.source, plain(pipe, CAR, **options)[0])
    assert close(got.images[0], plain(pipe, BLUE, **options)[0])
    assert not close(got.images[1], got.source)
    assert got.masks[1] is not None
    assert tuple(got.masks[1].shape[1:]) == tuple(got.source.shape[1:])


def test_an_unguided_edit_follows_its_definition() -> None:
    edits, text, make = CASES["refine"]
    reference = dense.Dense([make()], STEPS, (LATENT, LATENT), guided=False)
    pipe = tiny.sd1()
    options: dict[str, Any] = {"guidance_scale": 1.0}
    want = reference.run(pipe, [CAR, text], 0, **(SMALL | options))
    got = run(pipe, edits, **options)
    assert close(got.images[0], want[1])


def test_guidance_may_end_midway() -> None:
    pipe = tiny.sd1()

    def cut(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    options: dict[str, Any] = {
        "callback_on_step_end": cut,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    still = Replace("red", "blue", cross_steps=0.0, self_steps=0.0)
    got = run(pipe, still, [Refine(NIGHT), LocalBlend("car", threshold=0.8)], **options)
    want = plain(pipe, [CAR, BLUE, NIGHT], **options)
    assert torch.equal(got.source, want[0])
    assert torch.equal(got.images[0], want[1])


@pytest.mark.parametrize("family", ["sd1_img2img", "sdxl_img2img", "sd1_inpaint", "sdxl_inpaint"])
def test_images_can_be_the_base(family: str) -> None:
    pipe = getattr(tiny, family)("euler_ancestral")
    options: dict[str, Any] = {"image": picture(), "strength": 0.7}
    if "inpaint" in family:
        options["mask_image"] = Image.fromarray(
            ((torch.arange(SIDE).expand(SIDE, SIDE) > 15).numpy() * 255).astype("uint8")
        )
    edits: list[Any] = [
        [],
        Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
        [Replace("red", "blue"), LocalBlend("car", threshold=0.4)],
    ]
    got = run(pipe, *edits, num_inference_steps=6, **options)
    alone = {"num_inference_steps": 6} | options
    assert torch.equal(got.images[0], got.source)
    assert not close(got.images[2], got.source)
    if family.startswith("sd1"):  # SDXL's tiny twin blows rounding up
        assert close(got.source, plain(pipe, CAR, **alone)[0])
    alone |= {name: [alone[name]] * 4 for name in ("image", "mask_image") if name in alone}
    want = plain(pipe, [CAR, CAR, BLUE, BLUE], **alone)
    assert torch.equal(got.source, want[0])
    assert torch.equal(got.images[1], want[2])


def test_explicit_processors_are_edited_alike() -> None:
    one, two = tiny.sd1(), tiny.sd1()
    two.unet.set_attn_processor(AttnProcessor())
    edits: list[Any] = [
        Replace("car", "skateboard", cross_steps=(0.2, 0.7), self_steps=(0.4, 1.0)),
        [Refine(NIGHT), Reweight({"night": 0.0, "lawn": -0.5})],
        CASES["local blend"][0],
    ]
    first, second = run(one, *edits), run(two, *edits)
    for a, b in zip(first.images, second.images, strict=True):
        assert close(a, b)
    assert type(two.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor) is (
        AttnProcessor
    )
    assert first.trace is not None
    assert second.trace is not None
    mine, theirs = first.trace.heatmap("red", 0), second.trace.heatmap("red", 0)
    assert torch.allclose(torch.tensor(mine.array), torch.tensor(theirs.array), atol=1e-3)


def test_lora_and_ip_adapter_stay_in_place() -> None:
    pipe = tiny.sd1()
    tiny.add_lora(pipe)
    embeds = tiny.load_ip_adapter(pipe)
    still = Replace("red", "blue", cross_steps=0.0, self_steps=0.0)
    got = run(pipe, still, Replace("red", "blue"), ip_adapter_image_embeds=embeds)
    assert close(got.source, plain(pipe, CAR, ip_adapter_image_embeds=embeds)[0])
    assert close(got.images[0], plain(pipe, BLUE, ip_adapter_image_embeds=embeds)[0])
    assert not close(got.images[1], got.images[0])


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
def test_perturbed_attention_guidance_keeps_its_rows(guidance_scale: float) -> None:
    pipe, options = tiny.pag(), {"pag_scale": 3.0, "guidance_scale": guidance_scale}
    still = Replace("red", "blue", cross_steps=0.0, self_steps=0.0)
    got = run(pipe, [], still, Replace("red", "blue"), **options)
    assert close(got.source, plain(pipe, CAR, **options)[0])
    assert torch.equal(got.images[0], got.source)
    assert close(got.images[1], plain(pipe, BLUE, **options)[0])
    assert not close(got.images[2], got.images[1])


def test_controlnets_are_run_as_they_are() -> None:
    pipe = tiny.controlnet()
    got = run(pipe, [], Replace("red", "blue"), image=picture())
    assert close(got.source, plain(pipe, CAR, image=picture())[0])
    assert torch.equal(got.images[0], got.source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_edited_in_its_own_dtype(dtype: torch.dtype) -> None:
    # many CPUs emulate half precision, at a twentieth of the speed
    small = {"height": 16, "width": 16, "num_inference_steps": 2}
    pipe = tiny.sd1().to(dtype=dtype)
    got = run(pipe, [], Replace("red", "blue"), [Refine(NIGHT), LocalBlend("car")], **small)
    assert got.source.dtype == dtype
    assert torch.equal(got.images[0], got.source)
    assert all(bool(torch.isfinite(image).all()) for image in got.images)
