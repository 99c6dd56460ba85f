"""Previews alone: a family whose clean latents say what they were made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInstructPix2PixPipeline

import xattn
from tests import tiny
from tests.fakes import call_of, sampling, schedule
from tests.helpers import CAR, LATENT, SIDE, draw, never, picture
from xattn.instruments.previews import Previews
from xattn.session.sampling import Sampling


def started(**other: Any) -> tuple[Previews, Sampling]:
    """Two images with guidance; the sample of each row is its number."""
    sample = torch.arange(4.0)[:, None, None, None].expand(4, 4, 2, 2)
    run = sampling(("a red car", "blue"), sample=sample, **other)
    previews = Previews()
    previews.begin(run)
    return previews, run


def noise(*rows: float) -> Any:
    return torch.tensor(rows).float()[:, None, None, None].expand(-1, 4, 2, 2)


def test_room_is_made_for_every_step_and_image() -> None:
    _, run = started()
    assert run.estimates is not None
    assert run.estimates.shape == (3, 2, 4, 2, 2)
    assert run.estimates.dtype == torch.float16


@pytest.mark.parametrize(
    ("scale", "rows", "guided"),
    [
        (None, slice(2, 4), (7, 9)),  # the conditional prediction alone
        (3.0, slice(2, 4), (1 + 3 * 6, 2 + 3 * 7)),  # negative + scale (positive - negative)
        (3.0, slice(0, 2), (7 + 3 * -6, 9 + 3 * -7)),  # the positive first
    ],
)
def test_guidance_is_applied_as_the_pipeline_does(scale: Any, rows: slice, guided: Any) -> None:
    previews, run = started(facts={"guidance_scale": scale})
    previews.after_call(run, call_of(run, 1, output=noise(1, 2, 7, 9), conditional=(rows,)))
    assert run.estimates is not None
    want = torch.tensor(guided) * 10 + torch.arange(4.0)[rows] + 20
    assert torch.equal(run.estimates[1, :, 0, 0, 0].float(), want)
    assert not run.estimates[[0, 2]].any()


def test_a_call_without_guidance_is_taken_as_it_is() -> None:
    previews, run = started(facts={"guidance_scale": 3.0})
    call = call_of(run, output=noise(7, 9), conditional=(slice(0, 2),))
    call.sample = run.sample[:2]
    previews.after_call(run, call)
    assert run.estimates is not None
    assert run.estimates[0, :, 0, 0, 0].tolist() == [100, 121]


def test_a_steps_second_call_is_read_at_its_own_timestep() -> None:
    previews, run = started(schedule=schedule(30.0, 20.0, 20.0, order=2))
    for number, timestep in enumerate((30, 20, 20)):
        call = call_of(run, number, output=noise(0, 0, 0, 0))
        previews.after_call(run, call)
        assert run.estimates is not None
        assert run.estimates[call.step, :, 0, 0, 0].tolist() == [2 + timestep, 3 + timestep]


def test_estimates_keep_no_gradients() -> None:
    previews, run = started()
    output = noise(1.0, 2, 3, 4).clone().requires_grad_()
    previews.after_call(run, call_of(run, output=output))
    assert run.estimates is not None
    assert not run.estimates.requires_grad


def test_previews_are_of_images() -> None:
    film = torch.zeros(2, 4, 1, 2, 2)  # of one frame
    with pytest.raises(ValueError, match="its latents are a video's, even of one frame"):
        Previews().begin(sampling(("a red car", "blue"), sample=film))


def test_previews_need_a_schedule() -> None:
    with pytest.raises(ValueError, match="previews=True needs scheduler="):
        started(schedule=None)


# -- of whole pipelines ------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpm++2m", "pndm"])
def test_previews_are_what_the_denoiser_takes_the_latents_to_be(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    plain = draw(pipe, steps=6)
    with xattn.record(pipe, previews=True, words="red") as trace:
        recorded = draw(pipe, steps=6)
    np.testing.assert_array_equal(plain, recorded)
    estimates = trace.run.estimates
    assert estimates is not None
    assert estimates.shape == (6, 1, 4, LATENT, LATENT)
    assert trace.nbytes == trace.run.store.nbytes + estimates.nbytes
    generator = torch.Generator().manual_seed(0)
    latents = pipe(
        CAR,
        generator=generator,
        num_inference_steps=6,
        height=SIDE,
        width=SIDE,
        output_type="latent",
    ).images
    # the last step goes to what was expected, or nearly there
    torch.testing.assert_close(estimates[-1].float(), latents, atol=0.35, rtol=0.1)


def pix2pix() -> tuple[Any, dict[str, Any]]:
    model = tiny.sdxl().unet.config
    parts = {"unet": tiny.unet(**{**model, "in_channels": 8})}
    pipe = tiny.sdxl(cls=StableDiffusionXLInstructPix2PixPipeline, **parts)
    return pipe, {"image": picture()}


@pytest.mark.parametrize(
    "made",
    [
        lambda: (tiny.pag(), {"pag_scale": 3.0}),
        lambda: (tiny.pag(), {"pag_scale": 3.0, "guidance_scale": 1.0}),
        pix2pix,
    ],
    ids=["perturbed attention", "perturbed attention alone", "InstructPix2Pix"],
)
def test_guidance_of_unknown_weights_is_refused_before_the_first_step(made: Any) -> None:
    pipe, options = made()
    pipe.unet.forward = never
    with (
        pytest.raises(ValueError, match=f"can't be had with {type(pipe).__name__} as it is called"),
        xattn.record(pipe, previews=True),
    ):
        pipe(CAR, num_inference_steps=2, height=SIDE, width=SIDE, **options)


@pytest.mark.parametrize("name", ["run.safetensors", "folder"])
def test_previews_are_saved_and_animated(sd1: Any, tmp_path: Any, name: str) -> None:
    from PIL import Image

    to = tmp_path / name if name == "folder" else "cpu"
    with xattn.record(sd1, previews=True, to=to) as trace:
        sd1(CAR, num_inference_steps=3, height=SIDE, width=SIDE)
    if name != "folder":
        trace.save(tmp_path / name)
    loaded = xattn.load(tmp_path / name)
    assert torch.equal(loaded.run.estimates, trace.run.estimates)
    trace.animate("red", tmp_path / "red.gif")
    with Image.open(tmp_path / "red.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
