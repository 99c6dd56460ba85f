from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xattn.toyland import train
from xattn.toyland.autoencoder import build_autoencoder, encode, normalise_latents
from xattn.toyland.bundle import WEIGHTS, demo
from xattn.toyland.denoiser import Denoiser, build_scheduler, snr_weights
from xattn.toyland.progress import Progress
from xattn.toyland.team import ALONE
from xattn.toyland.vocabulary import LENGTH, build_tokenizer, learn_merges
from xattn.toyland.world import PALETTE, WORDS


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = build_tokenizer()
    assert all(tokenizer.tokenize(word) == [f"{word}</w>"] for word in WORDS)


def test_other_words_split_and_come_back_whole() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer.tokenize("turquoise")) > 1
    ids = tokenizer("a turquoise zebra, naïve 42").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == [
        "a",
        "turquoise",
        "zebra",
        ",",
        "naïve",
        "4",
        "2",
    ]


def test_merges_do_not_depend_on_the_order_of_the_words() -> None:
    assert learn_merges(WORDS) == learn_merges(WORDS[::-1])


def test_the_bundled_tokenizer_is_the_one_that_the_script_makes(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    bundled = json.loads((WEIGHTS / "tokenizer" / "tokenizer.json").read_text())
    assert made["model"] == bundled["model"]


def test_the_bundle_is_small_and_half_precision() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 16_000_000
    from safetensors import safe_open

    for path in WEIGHTS.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}


def test_demo_loads_plain_classes_at_the_worlds_size() -> None:
    pipe = demo(device="cpu")
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    assert {type(part).__module__.split(".")[0] for part in pipe.components.values() if part} == {
        "diffusers",
        "transformers",
    }
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 128
    assert pipe.tokenizer.model_max_length == LENGTH == 77
    assert pipe.unet.dtype == torch.float32
    assert demo(device="cpu", dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_demo_takes_components_of_ones_own() -> None:
    scheduler = build_scheduler()
    assert demo(device="cpu", scheduler=scheduler).scheduler.config == scheduler.config
    assert inspect.signature(demo).parameters["dtype"].default is torch.float32


def nearest_colour(pixels: Any) -> str:
    names = list(PALETTE)
    colours = np.array([PALETTE[name] for name in names])
    distances = np.square(pixels.reshape(-1, 1, 3).astype(float) - colours).sum(-1)
    return names[int(np.bincount(distances.argmin(1), minlength=len(names)).argmax())]


def test_the_demo_draws_a_red_car_on_a_green_lawn(toyland: Any) -> None:
    image = toyland(
        "a red car on a green lawn",
        num_inference_steps=15,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    pixels = np.round(image * 255)
    assert pixels.shape == (128, 128, 3)
    assert nearest_colour(pixels[-16:]) == "green"
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)
    assert 0.02 < red.mean() < 0.4


def test_normalised_latents_have_unit_variance_and_decode_alike() -> None:
    torch.manual_seed(0)
    model = build_autoencoder().eval()
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        before = encode(model, images)
        decoded = model.decode(before).sample
        normalise_latents(model, before)
        after = encode(model, images)
        again = model.decode(after).sample
    assert torch.allclose(after.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(after.std((0, 2, 3)), torch.ones(8), atol=1e-4)
    assert torch.allclose(decoded, again, atol=1e-3)


def test_weights_of_the_loss_follow_the_signal_to_noise_ratio() -> None:
    scheduler = build_scheduler()
    alphas = scheduler.alphas_cumprod[torch.tensor([0, 500, 999])]
    snr = alphas / (1 - alphas)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    assert torch.allclose(snr_weights(scheduler, torch.tensor([0, 500, 999])), expected, rtol=1e-3)


def test_text_tokens_do_not_mix() -> None:
    tokenizer = build_tokenizer()
    model = Denoiser(tokenizer).text_encoder
    ids = tokenizer(["a red car", "a blue car"], return_tensors="pt").input_ids
    with torch.no_grad():
        red, blue = model(ids)[0]
    assert not torch.equal(red[2], blue[2])
    assert torch.equal(red[3:], blue[3:])


def test_a_rate_rises_and_ends_at_zero(tmp_path: Path) -> None:
    progress = Progress(tmp_path, "x", 10, None, ALONE)
    assert progress.rate(1.0, warmup=4) == pytest.approx(0.25)
    for _ in range(10):
        progress.advance()
    assert progress.share == 1
    assert progress.rate(1.0, warmup=4) == pytest.approx(0)


@pytest.mark.slow
def test_training_runs_from_nothing_and_resumes(tmp_path: Path) -> None:
    few = ["--scenes", "8", "--autoencoder-steps", "2", "--decoder-steps", "1", "--batch", "2"]
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    where += ["--sheet-steps", "1"]
    train.main([*few, *where, "--steps", "2", "--save-every", "2"])
    assert (tmp_path / "out" / "model_index.json").exists()
    assert (tmp_path / "work" / "sheet-00002.png").exists()
    first = torch.load(tmp_path / "work" / "denoiser.pt", weights_only=True)
    train.main([*few, *where, "--steps", "3", "--save-every", "2"])
    second = torch.load(tmp_path / "work" / "denoiser.pt", weights_only=True)
    assert (first["step"], second["step"]) == (2, 3)
    assert demo_from(tmp_path / "out").unet.config.sample_size == 16


def demo_from(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
