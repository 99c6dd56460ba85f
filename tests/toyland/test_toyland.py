from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from xattn.models.loading import load_pipeline
from xattn.toyland.bundle import MODELS, WEIGHTS, Model, demo, shared_autoencoder
from xattn.toyland.scenes import scene
from xattn.toyland.training import train
from xattn.toyland.training.autoencoder import build_autoencoder, encode, normalise_latents
from xattn.toyland.training.dataset import training_scene
from xattn.toyland.training.denoiser import build_scheduler, build_text_encoder, snr_weights
from xattn.toyland.training.loop import Batch, tokenize
from xattn.toyland.training.progress import Progress
from xattn.toyland.training.recipes import (
    RECIPES,
    assemble_joint,
    go_on_from_bundled,
    start_from_bundled,
)
from xattn.toyland.training.teacher import Lesson, Lessons, Teacher
from xattn.toyland.training.team import ALONE
from xattn.toyland.training.transformer import (
    CHANGE_WEIGHT,
    UNPROMPTED_SHARE,
    Transformer,
    lesson_of,
)
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
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 45_000_000
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


@pytest.mark.parametrize("name", ["cpu", "", "UNET"])
def test_an_unknown_model_is_refused_with_the_names_there_are(name: Any) -> None:
    with pytest.raises(ValueError, match=r"unet, contextual, mmdit .*device="):
        demo(name)


def test_load_pipeline_names_what_the_installed_diffusers_lacks(tmp_path: Path) -> None:
    index = {"_class_name": "TomorrowsPipeline", "_diffusers_version": "9.0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    said = rf"diffusers {diffusers.__version__} with .* lacks TomorrowsPipeline; try `pip install"
    with pytest.raises(ValueError, match=said):
        load_pipeline(str(tmp_path), device="cpu")


def test_load_pipeline_knows_the_bundled_models_by_name() -> None:
    assert load_pipeline("contextual", device="cpu").text_encoder.config.num_hidden_layers == 2
    assert type(load_pipeline("mmdit", device="cpu")).__name__ == "StableDiffusion3Pipeline"
    assert load_pipeline("unet", device="cpu").text_encoder.config.num_hidden_layers == 0


def test_all_bundled_models_share_the_autoencoder() -> None:
    files = [path.relative_to(WEIGHTS) for path in WEIGHTS.rglob("vae/*.safetensors")]
    assert files == [Path("vae/diffusion_pytorch_model.safetensors")]
    first, *others = (demo(name, device="cpu").vae.state_dict() for name in MODELS)
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_joint_model_draws_with_and_without_guidance(guidance: float) -> None:
    pipe = demo("mmdit", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a red car on a green lawn",
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert image.size == (128, 128)


def test_the_joint_models_prompts_hold_the_longest_hard_caption() -> None:
    longest = "a small red car on the left and a small blue car and a small pink mug on the right"
    tokenizer = demo("mmdit", device="cpu").tokenizer
    assert len(tokenizer(f"{longest} on a grey road at night").input_ids) == 28
    assert tokenizer.model_max_length == 32


def test_a_contextual_encoder_mixes_what_stands_before_a_word() -> None:
    pipe = demo("contextual", device="cpu")
    ids = pipe.tokenizer(["a red car", "a blue car"], return_tensors="pt").input_ids
    with torch.no_grad():
        red, blue = pipe.text_encoder(ids)[0]
    assert torch.equal(red[:2], blue[:2])  # the start token and "a"
    assert all(not torch.allclose(red[n], blue[n], atol=1e-3) for n in (2, 3, 4))


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
    model = build_text_encoder(tokenizer)
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


def test_one_vector_stands_for_all_of_t5s() -> None:
    torch.manual_seed(0)
    model: Any = RECIPES["mmdit"].build().eval()
    for parameter in model.parameters():  # nothing at zero, so that every part counts
        parameter.data += 0.05 * torch.randn_like(parameter)
    pipe = assemble_joint(shared_autoencoder(), model)
    captions = ["a red car on a green lawn", ""]
    latents, times = torch.randn(2, 8, 16, 16), torch.tensor([300.0, 900.0])
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False
        )
        wanted = pipe.transformer(latents, text, torch.zeros_like(pooled), times).sample
        model.begin("cpu")
        made = model(latents, times, tokenize(pipe.tokenizer, captions, 32))
    assert text.shape == (2, 32 + 256, 128)
    assert torch.allclose(made, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_steps_are_compiled_while_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def compiled(function: Any, **how: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(args[0].shape)
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    model: Any = RECIPES["mmdit"].build().eval()
    asked = (torch.randn(1, 8, 16, 16), torch.tensor([500.0]), torch.zeros(1, 32).long())
    with torch.no_grad():
        model.begin("cpu")
        plain = model(*asked)
        model.compiles = True
        model.begin("cpu")
        assert torch.equal(model(*asked), plain)
        assert len(calls) == 1
        model.end()
        model(*asked)
    assert len(calls) == 1


def test_the_pooled_prompt_is_zero_so_the_tokens_carry_everything() -> None:
    pipe = demo("mmdit", device="cpu")
    pooled = pipe.encode_prompt("a red car", None, None, do_classifier_free_guidance=False)[2]
    assert not pooled.any()


def test_patches_are_told_apart_by_row_and_by_column() -> None:
    embedding: Any = RECIPES["mmdit"].build().get_submodule("transformer.pos_embed")
    values = embedding.cropped_pos_embed(16, 16)[0]  # (64, channels)
    spread = torch.linalg.svdvals(values - values.mean(0))
    assert int((spread > spread[0] / 50).sum()) >= 14  # sinusoids alone: 6


def test_the_velocity_of_a_perfect_guess_costs_nothing() -> None:
    class Perfect(Transformer):
        def forward(self, noisy: Any, timesteps: Any, ids: Any) -> Any:
            share = timesteps[:, None, None, None] / 1000
            return (noisy - torch.cat([clean, clean])) / share  # noise minus clean

    clean = torch.randn(16, 8, 16, 16)
    batch = Batch(clean, torch.zeros(16, 32, dtype=torch.long), torch.zeros(16).bool())
    loss = Perfect(build_tokenizer()).loss(batch, torch.Generator().manual_seed(0))
    assert float(loss) < 1e-8


def test_a_teacher_predicts_a_flow_at_the_same_ratio_of_signal_to_noise() -> None:
    teacher = Teacher("cpu", torch.zeros(1, 32).long(), end=1)
    levels = torch.tensor([0.1, 0.5, 0.8])
    kept = build_scheduler().alphas_cumprod
    steps = teacher.timesteps(levels)
    low, high = kept[steps.floor().long()], kept[steps.ceil().long()]
    assert torch.all(high <= (1 - levels) ** 2 / ((1 - levels) ** 2 + levels**2))
    assert torch.all(low >= (1 - levels) ** 2 / ((1 - levels) ** 2 + levels**2))


def test_a_teacher_knows_the_picture_where_little_noise_is() -> None:
    drawn = scene(900_000)
    latents = encode(
        shared_autoencoder(local_files_only=True).float(), np.asarray(drawn.image)[None]
    )
    ids, empty = (tokenize(build_tokenizer(), [text], 32) for text in (drawn.caption, ""))
    batch = Batch(latents, ids, torch.tensor([False]))
    lesson = lesson_of(batch, torch.Generator().manual_seed(3))
    lesson = replace(lesson, levels=torch.tensor([0.3]), noisy=lesson.target * 0.3 + latents)
    teacher = Teacher("cpu", empty, end=build_tokenizer().pad_token_id)
    taught = teacher.correct(lesson, batch.hard)
    assert 0 < float((taught.target - lesson.target).square().mean()) < 0.3  # of 2
    alone = teacher.velocity(lesson.noisy, lesson.levels, empty, batch.hard)
    # both captions in one call: rounded otherwise than alone
    torch.testing.assert_close(taught.unprompted, alone, rtol=0, atol=1e-4)
    assert taught.taught.all()


def test_a_teacher_leaves_noise_beyond_its_reach_as_it_was() -> None:
    latents = torch.randn(2, 8, 16, 16)
    batch = Batch(latents, torch.zeros(2, 32).long(), torch.zeros(2).bool())
    lesson = lesson_of(batch, torch.Generator().manual_seed(0))
    lesson = replace(lesson, levels=torch.tensor([0.01, 0.95]))
    taught = Teacher("cpu", batch.ids[:1], end=1).correct(lesson, batch.hard)
    assert not taught.taught.any()
    assert torch.equal(taught.target, lesson.target)
    assert torch.equal(taught.unprompted, lesson.target)


def test_only_what_a_caption_changes_is_counted_again() -> None:
    class Fixed(Transformer):
        def forward(self, noisy: Any, timesteps: Any, ids: Any) -> Any:
            return torch.cat([noisy.new_ones(len(noisy) // 2, 8, 16, 16), 0 * noisy[::2]])

    model, zero = Fixed(build_tokenizer()), torch.zeros(4, 8, 16, 16)
    ids, flag = torch.zeros(4, 32).long(), torch.tensor([True, True, False, False])
    lesson = Lesson(zero, torch.ones(4), ids, zero, zero, flag)
    model._lesson = lambda *_: lesson  # type: ignore[method-assign]
    batch = Batch(zero, ids, flag)
    loss = model.loss(batch, torch.Generator())
    # the captions' error is 1, the empty caption's 0; half of the rows are taught
    assert float(loss) == pytest.approx((1 - UNPROMPTED_SHARE) + CHANGE_WEIGHT / 2)


def test_lessons_are_drawn_again_and_the_oldest_are_forgotten() -> None:
    made: list[int] = []

    def make() -> Lesson:
        made.append(len(made))
        return Lesson(*(torch.full((2, 1), float(made[-1])) for _ in range(6)))

    lessons = Lessons(reuse=4, least=4, most=6)
    random = torch.Generator().manual_seed(0)
    seen = [lessons.draw(make, 8, random).levels for _ in range(21)]
    assert len(made) == 7  # two to begin with, then one at turns 4, 8, 12, 16, 20
    assert set(seen[-1].flatten().tolist()) == {4.0, 5.0, 6.0}


def test_the_contextual_model_starts_from_the_bundled_unet() -> None:
    model: Any = RECIPES["contextual"].build()
    start_from_bundled(model)
    bundled = demo(device="cpu")
    assert all(
        torch.equal(model.unet.state_dict()[key], value)
        for key, value in bundled.unet.state_dict().items()
    )
    words = "embeddings.token_embedding.weight"
    own, base = model.text_encoder.state_dict(), bundled.text_encoder.state_dict()
    assert torch.equal(own[words], base[words])
    assert len(own) > len(base)


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_model_can_be_trained_further(name: Model) -> None:
    model = RECIPES[name].build()
    go_on_from_bundled(model, name)
    pipe: Any = demo(name, device="cpu")
    for part, module in model.named_children():
        bundled = getattr(pipe, part).state_dict()
        assert all(torch.equal(value, bundled[key]) for key, value in module.state_dict().items())


def test_a_mixture_has_hard_scenes_at_odd_seeds() -> None:
    assert [len(training_scene(n, mixed=True).things) == 3 for n in range(6)] == [False, True] * 3
    assert training_scene(3).caption == scene(3).caption


SMALL = ["--scenes", "8", "--batch", "2", "--save-every", "2", "--sheet-steps", "1"]


@pytest.mark.slow
def test_training_runs_from_nothing_and_resumes(tmp_path: Path) -> None:
    few = [*SMALL, "--autoencoder-steps", "2", "--decoder-steps", "1", "--device", "cpu"]
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    train.main([*few, *where, "--steps", "2"])
    assert (tmp_path / "out" / "model_index.json").exists()
    assert (tmp_path / "work" / "sheet-00002.png").exists()
    first = torch.load(tmp_path / "work" / "denoiser.pt", weights_only=True)
    train.main([*few, *where, "--steps", "3"])
    second = torch.load(tmp_path / "work" / "denoiser.pt", weights_only=True)
    assert (first["step"], second["step"]) == (2, 3)
    assert saved(tmp_path / "out").unet.config.sample_size == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind"),
    [("contextual", "StableDiffusionPipeline"), ("mmdit", "StableDiffusion3Pipeline")],
)
def test_every_model_trains_by_the_same_command(tmp_path: Path, model: str, kind: str) -> None:
    where = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    train.main(["--model", model, "--from-nothing", *SMALL, *where, "--steps", "2"])
    assert (tmp_path / "work" / "sheet-00002.png").exists()
    assert type(saved(tmp_path / "out")).__name__ == kind
    assert (tmp_path / "out" / "losses.png").exists()


def saved(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if name in index}
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
