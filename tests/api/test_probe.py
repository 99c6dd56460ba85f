"""Probing a given image: the passes are those of a loop by hand, and their maps a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.tiny import transformers
from xattn.models import family_of
from xattn.models.flux import Flux

PROMPT = "a red car"
BUILT: dict[str, Any] = {
    "sdxl": tiny.sdxl,
    "sd3": lambda: transformers.sd3(t5=False),
    "flux": transformers.flux,
}
SMALL = (16, 16)  # height and width: four latents a side for UNets' coarsest grid of two


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@torch.no_grad()
def by_hand(pipe: Any, photo: Image.Image, levels: tuple[int, ...]) -> xattn.Trace:
    ids = pipe.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
    text = pipe.text_encoder(ids)[0]
    pixels = pipe.image_processor.preprocess(photo)
    clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    generator = torch.Generator().manual_seed(7)
    loop = xattn.Loop(pipe.unet, tokenizer=pipe.tokenizer, prompt=PROMPT)
    with xattn.record(loop) as trace:
        for level in levels:
            noise = torch.randn(clean.shape[1:], generator=generator)[None]
            noisy = pipe.scheduler.add_noise(clean, noise, torch.tensor([level]))
            pipe.unet(noisy, level, text)
    return trace


def test_it_is_the_loop_by_hand_bit_for_bit(pipe: Any, photo: Image.Image) -> None:
    trace = xattn.probe(pipe, photo, PROMPT, levels=(0.3, 0.8), seed=7, size=SMALL)
    wanted = by_hand(pipe, photo, (800, 300))
    assert trace.timesteps == (800.0, 300.0)
    assert trace.words == ("a", "red", "car")
    for layer in range(len(trace.run.layers)):
        assert torch.equal(trace.run.maps(layer), wanted.run.maps(layer))


def test_several_noises_are_averaged(pipe: Any, photo: Image.Image) -> None:
    options: dict[str, Any] = {"levels": 0.5, "size": SMALL, "dtype": torch.float32}
    both = xattn.probe(pipe, photo, PROMPT, seeds=2, seed=7, **options)
    each = [xattn.probe(pipe, photo, PROMPT, seed=seed, **options) for seed in (7, 8)]
    assert both.run.done == 1
    for layer in range(len(both.run.layers)):  # a heat map clamps its layers' resized maps
        mean = sum(one.run.maps(layer) for one in each) / 2
        torch.testing.assert_close(both.run.maps(layer), mean, atol=1e-6, rtol=0)


def test_a_batch_is_a_run_for_each_image(pipe: Any, photo: Image.Image, tmp_path: Path) -> None:
    other = Image.new("RGB", (16, 16), "blue")
    texts = ["a red car", "a blue boat on a lake"]
    options: dict[str, Any] = {"levels": (0.2, 0.7), "size": SMALL, "dtype": torch.float32}
    trace = xattn.probe(pipe, [photo, other], texts, seed=[7, 9], **options)
    alone = xattn.probe(pipe, other, texts[1], seed=9, **options)
    assert len(trace) == 2
    assert trace[0].words == ("a", "red", "car")
    np.testing.assert_allclose(trace[1].heatmap("boat"), alone.heatmap("boat"), atol=1e-5)
    assert trace[1].run.images[0].size == (16, 16)
    trace.save(tmp_path / "both.safetensors")
    read = xattn.load(tmp_path / "both.safetensors")
    np.testing.assert_array_equal(read[1].heatmap("boat"), trace[1].heatmap("boat"))
    assert read[0].run.info["levels"] == [0.7, 0.2]


def test_it_is_a_trace_as_ever(pipe: Any, photo: Image.Image, tmp_path: Path) -> None:
    trace = xattn.probe(pipe, photo, PROMPT, levels=(0.2, 0.7), size=SMALL, affinity=True)
    assert trace.heatmap("red").overlay().size
    assert trace.heatmap("red", refined=True).shape == (8, 8)
    assert trace.grid().size
    trace.report(tmp_path / "report.html")
    trace.animate("red", tmp_path / "levels.gif")
    assert (tmp_path / "levels.gif").stat().st_size


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_every_family_is_probed_and_left_as_it_was(kind: str, photo: Image.Image) -> None:
    pipe = BUILT[kind]()
    denoiser = pipe.unet if kind == "sdxl" else pipe.transformer
    before = [layer.module.processor for layer in family_of(denoiser).layers(denoiser)]
    trace = xattn.probe(pipe, photo, PROMPT, levels=0.4, size=SMALL)
    after = [layer.module.processor for layer in family_of(denoiser).layers(denoiser)]
    assert trace.timesteps == (400.0,)
    assert trace.heatmap("car").maximum > 0
    assert all(one is other for one, other in zip(before, after, strict=True))


@torch.no_grad()
def test_a_flow_is_noised_on_the_straight_line(photo: Image.Image) -> None:
    pipe = transformers.sd3(t5=False)
    seen: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    xattn.probe(pipe, photo, PROMPT, levels=0.25, seed=3, size=SMALL)
    hook.remove()
    config = pipe.vae.config
    clean = pipe.vae.encode(pipe.image_processor.preprocess(photo)).latent_dist.mode()
    clean = (clean - config.shift_factor) * config.scaling_factor
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(seen[0]["hidden_states"], 0.75 * clean + 0.25 * noise)
    assert seen[0]["timestep"].tolist() == [250.0]


class Kin(Flux):
    """A family that inherits FLUX.1's call, which its own model doesn't take."""


@pytest.mark.parametrize("family", [object(), Kin()])
def test_a_family_that_cannot_be_probed_is_refused_in_a_sentence(
    family: Any, pipe: Any, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xattn.api.probe.family_of_pipeline", lambda pipe: family)
    with pytest.raises(TypeError, match="StableDiffusionPipeline can't be probed yet"):
        xattn.probe(pipe, photo, PROMPT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1.0}, "share of the noise schedule between 0 and 1"),
        ({"levels": ()}, "share of the noise schedule between 0 and 1"),
        ({"levels": (0.5, 0.5)}, "each given once"),
        ({"levels": float("nan")}, "share of the noise schedule"),
        ({"seeds": 0}, "seeds=0 must be a whole number, 1 or more"),
        ({"batch": 0}, "batch=0 must be a whole number, 1 or more"),
        ({"size": (10, 16)}, "height and width must be multiples of 8"),
        ({"seed": [1, 2]}, "seed has 2 entries for 1 images; give one for each"),
        ({"words": ["boat"]}, "'boat' is not in the prompt"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(
    pipe: Any, photo: Image.Image, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        xattn.probe(pipe, photo, PROMPT, **{"size": SMALL, **options})


def test_a_pipeline_that_wants_more_than_latents_is_refused(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="probe a text-to-image pipeline"):
        xattn.probe(tiny.sd1(unet=tiny.unet(in_channels=9)), photo, PROMPT, size=SMALL)
