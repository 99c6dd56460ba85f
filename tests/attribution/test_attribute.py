"""Attribution of a tiny model's words: every number equals one computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import xattn
from tests import tiny
from tests.helpers import assert_restored, picture
from tests.tiny import transformers
from tests.tiny.crossed import pixart
from xattn.attribution.gradients import Gradient
from xattn.attribution.players import players_of, without
from xattn.attribution.shapley import Shapley
from xattn.attribution.surrogate import Surrogate
from xattn.attribution.targets import target_of
from xattn.text.tokenize import tokenize

PROMPT = "a red car"
SMALL = (16, 16)
LEVEL = 0.6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def trace(pipe: Any) -> xattn.Trace:
    return xattn.probe(pipe, picture(16, 16), PROMPT, levels=0.5, size=SMALL)


@torch.no_grad()
def noise_by_hand(
    pipe: Any, texts: list[str], level: float = LEVEL
) -> tuple[Tensor, Tensor, float]:
    """Return the noised latents, the predicted noise of each text, and the cumulative alpha."""
    ids = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    states = pipe.text_encoder(ids)[0]
    pixels = pipe.image_processor.preprocess(picture(16, 16))
    clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    step = round(1000 * level)
    alpha = float(pipe.scheduler.alphas_cumprod[step])
    noised = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    predicted = pipe.unet(noised.expand(len(texts), -1, -1, -1), step, states).sample
    return noised, predicted, alpha


def estimates_by_hand(pipe: Any, texts: list[str]) -> Tensor:
    noised, predicted, alpha = noise_by_hand(pipe, texts)
    return (noised - (1 - alpha) ** 0.5 * predicted) / alpha**0.5


def changes_by_hand(pipe: Any, texts: list[str]) -> Tensor:
    """Return the squared change of the estimate from the first text's, (texts - 1, 8, 8)."""
    found = estimates_by_hand(pipe, texts)
    return ((found[1:] - found[:1]) ** 2).mean(1)


LESS = [PROMPT, "red car", "a car", "a red"]


def test_occlusion_is_the_change_of_the_estimate_without_each_word(
    pipe: Any, trace: xattn.Trace
) -> None:
    why = xattn.attribute(pipe, trace, levels=LEVEL)
    wanted = changes_by_hand(pipe, LESS)
    assert why.words == ("a", "red", "car")
    np.testing.assert_allclose(why.values, wanted.mean((1, 2)).numpy(), rtol=1e-3)
    np.testing.assert_allclose(np.asarray(why.map("car")), wanted[2].numpy(), rtol=1e-2, atol=1e-9)
    assert why.calls == xattn.attribution_cost(pipe, PROMPT, levels=LEVEL).calls == 4
    assert xattn.attribution_cost(pipe, trace, levels=LEVEL).calls == 4


def test_a_region_counts_the_change_there_alone(pipe: Any, trace: xattn.Trace) -> None:
    mask = np.zeros((16, 16))
    mask[:, 8:] = 1  # the right half
    why = xattn.attribute(pipe, trace, target=mask, levels=LEVEL)
    wanted = changes_by_hand(pipe, LESS)[..., 4:].mean((1, 2))
    np.testing.assert_allclose(why.values, wanted.numpy(), rtol=1e-3)
    assert not np.asarray(why.map("red"))[:, :4].any()


def test_a_function_of_the_picture_is_explained(pipe: Any, trace: xattn.Trace) -> None:
    def redness(pictures: Tensor) -> Tensor:
        assert pictures.shape[1:] == (3, 16, 16)
        assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
        return pictures[:, 0].mean((1, 2))

    why = xattn.attribute(pipe, trace, target=redness, levels=LEVEL)
    with torch.no_grad():
        latents = estimates_by_hand(pipe, LESS) / pipe.vae.config.scaling_factor
        drawn = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    wanted = redness(drawn)
    np.testing.assert_allclose(why.values, (wanted[0] - wanted[1:]).numpy(), atol=1e-5)
    assert why.target == "redness"


@torch.no_grad()
def test_the_presence_of_a_concept_is_the_error_that_its_text_takes_away(pipe: Any) -> None:
    aim = target_of("two cats", pipe)
    estimates = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = torch.zeros(2)
    alphas = pipe.scheduler.alphas_cumprod
    for n, timestep in enumerate((700, 500, 300)):
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(n))
        alpha = alphas[timestep]
        noised = alpha**0.5 * estimates[:, 0] + (1 - alpha) ** 0.5 * noise
        errors = []
        for text in ("", "two cats"):
            ids = pipe.tokenizer([text] * 2, padding="max_length", return_tensors="pt").input_ids
            predicted = pipe.unet(noised, timestep, pipe.text_encoder(ids)[0]).sample
            errors.append(((predicted - noise) ** 2).flatten(1).sum(1))
        wanted += (1 - errors[1] / errors[0]) / 3
    torch.testing.assert_close(aim.values(estimates, estimates[0]), wanted, atol=1e-4, rtol=1e-3)
    assert aim.name == "the presence of 'two cats'"
    with pytest.raises(ValueError, match="a text with a word"):
        target_of("?", pipe)


def test_information_is_the_integral_of_the_squared_change_of_the_noise(
    pipe: Any, trace: xattn.Trace
) -> None:
    levels = (0.2, 0.5, 0.8)
    why = xattn.attribute(pipe, trace, how="information", levels=levels)
    apart, logs = [], []
    for level in levels:
        _, predicted, alpha = noise_by_hand(pipe, LESS, level)
        apart.append(((predicted[1:] - predicted[:1]) ** 2).sum((1, 2, 3)).double())
        logs.append(np.log(alpha / (1 - alpha)))
    wanted = (
        0.5 * -torch.trapezoid(torch.stack(apart), torch.as_tensor(logs), dim=0).numpy()
    )  # logs descend
    np.testing.assert_allclose(why.values, wanted, rtol=1e-3)
    sums = [np.asarray(why.map(word)).sum() for word in why.words]
    np.testing.assert_allclose(sums, why.values, rtol=1e-4)
    assert why.facts["unit"] == "nats"


def test_shapley_values_sum_to_what_all_words_do_together(pipe: Any, trace: xattn.Trace) -> None:
    why = xattn.attribute(pipe, trace, how="shapley", levels=LEVEL)
    wanted = float(changes_by_hand(pipe, [PROMPT, ""]).mean())
    assert float(why.values.sum()) == pytest.approx(wanted, rel=1e-3)
    assert why.calls == 8
    assert why.intervals is None


def test_sampled_shapley_values_have_intervals_and_the_same_sum(
    pipe: Any, trace: xattn.Trace
) -> None:
    exact = xattn.attribute(pipe, trace, how="shapley", levels=LEVEL)
    why = xattn.attribute(pipe, trace, how=Shapley(exact=2, orders=8), levels=LEVEL)
    assert float(why.values.sum()) == pytest.approx(float(exact.values.sum()), rel=1e-6)
    assert why.intervals is not None
    assert (why.intervals[:, 0] <= why.values).all()
    assert "to" in why.table()


def test_the_gradients_shares_sum_to_the_whole(pipe: Any, trace: xattn.Trace) -> None:
    why = xattn.attribute(pipe, trace, how=Gradient(points=6), levels=LEVEL, batch=4)
    assert why.facts["gained"] > 0
    assert float(why.values.sum()) == pytest.approx(why.facts["gained"], rel=1e-3)
    assert pipe.unet.conv_in.weight.grad is None
    with pytest.raises(ValueError, match="has no maps"):
        why.map("red")


def test_a_surrogate_of_few_words_states_its_fit(pipe: Any, trace: xattn.Trace) -> None:
    why = xattn.attribute(pipe, trace, how=Surrogate(sparse=2), levels=LEVEL)
    assert sum(value != 0 for value in why.values) == 2
    assert 0 < why.facts["fit"] <= 1


def test_padding_changes_the_words_own_places_alone(pipe: Any, trace: xattn.Trace) -> None:
    ids = pipe.tokenizer([PROMPT, ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        full, empty = pipe.text_encoder(ids)[0]
        given = full.clone()
        given[2] = empty[2]  # "red"
        noised, predicted, alpha = noise_by_hand(pipe, [PROMPT])
        other = pipe.unet(noised, 600, given[None]).sample
    wanted = float(((other - predicted) ** 2).mean()) * (1 - alpha) / alpha
    why = xattn.attribute(pipe, trace, absent="padding", levels=LEVEL)
    assert why.scores["red"] == pytest.approx(wanted, rel=1e-2)
    assert why.absent.startswith("the empty prompt's embedding")


def test_phrases_go_together(pipe: Any, trace: xattn.Trace) -> None:
    why = xattn.attribute(pipe, trace, of=["red car"], levels=LEVEL)
    wanted = changes_by_hand(pipe, [PROMPT, "a"]).mean()
    assert why.scores["red car"] == pytest.approx(float(wanted), rel=1e-3)


def test_a_word_that_comes_twice_is_two_words() -> None:
    prompt = tokenize(tiny.tokenizer(), "a red car and a car")
    names = [player.name for player in players_of(prompt, "words")]
    assert names == ["a", "red", "car", "and", "a (2)", "car (2)"]
    assert without(prompt.text, [(14, 15)]) == "a red car and car"
    (car,) = players_of(prompt, "car")
    assert len(car.positions) == 2


def test_a_prompt_is_drawn_first_and_the_pipeline_left_as_it_was(pipe: Any) -> None:
    before = dict(pipe.unet.attn_processors)
    why = xattn.attribute(
        pipe, PROMPT, num_inference_steps=2, height=16, width=16, levels=LEVEL,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert_restored(pipe, before)
    assert isinstance(why.picture, Image.Image)
    assert why.attention is not None
    assert "attention" in why.table()
    assert why.bar().width >= 640
    assert why.grid().size[0] > why.map("red").overlay().size[0]


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_drawn_prompt_is_asked_at_the_runs_own_latents(name: str) -> None:
    own = tiny.sd1(name)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    options = {"num_inference_steps": 4, "height": 16, "width": 16, "latents": noise}
    seen: list[tuple[Tensor, Any]] = []

    def keep(module: Any, given: tuple[Any, ...]) -> None:
        seen.append((given[0][-1:].clone(), given[1]))

    hook = own.unet.register_forward_pre_hook(keep)
    own(PROMPT, **options)
    hook.remove()
    latents, timestep = min(seen, key=lambda each: abs(float(each[1]) - 700))
    ids = own.tokenizer([PROMPT, "red car"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        predicted = own.unet(latents.expand(2, -1, -1, -1), timestep, own.text_encoder(ids)[0])
    alpha = float(own.scheduler.alphas_cumprod[round(float(timestep))])
    apart = ((predicted.sample[1] - predicted.sample[0]) ** 2).mean() * (1 - alpha) / alpha
    why = xattn.attribute(own, PROMPT, levels=0.7, **options)
    assert why.scores["a"] == pytest.approx(float(apart), rel=1e-2)


def test_what_the_cache_knows_is_not_asked_again(
    pipe: Any, trace: xattn.Trace, tmp_path: Path
) -> None:
    options = {"how": "shapley", "levels": LEVEL, "cache": tmp_path / "kept"}
    first = xattn.attribute(pipe, trace, **options)
    for file in list(tmp_path.rglob("*.safetensors"))[:3]:
        file.unlink()  # as if interrupted
    again = xattn.attribute(pipe, trace, **options)
    assert (first.calls, again.calls) == (8, 1 + 3)
    np.testing.assert_allclose(first.values, again.values, rtol=1e-4)
    other = xattn.attribute(pipe, trace, **(options | {"seed": 1}))
    assert other.calls == 8


def test_the_gradients_of_an_interrupted_path_are_not_asked_again(
    pipe: Any, trace: xattn.Trace, tmp_path: Path
) -> None:
    options = {"how": "gradient", "levels": LEVEL, "batch": 4, "cache": tmp_path}
    first = xattn.attribute(pipe, trace, **options)
    kept = sorted(tmp_path.rglob("*.safetensors"))
    assert len(kept) == 3  # twelve points, four at a time
    kept[0].unlink()  # as if interrupted
    again = xattn.attribute(pipe, trace, **options)
    assert first.calls - again.calls == 8
    np.testing.assert_allclose(first.values, again.values, rtol=1e-5)
    mask = np.eye(4)
    other = xattn.attribute(pipe, trace, **options, target=mask)
    assert other.calls == first.calls  # another target has gradients of its own


@pytest.mark.parametrize("make", [tiny.sdxl, lambda: transformers.sd3(t5=False), transformers.flux])
def test_other_families_are_asked_too(make: Any) -> None:
    other = make()
    trace = xattn.probe(other, picture(16, 16), PROMPT, levels=0.5, size=SMALL)
    why = xattn.attribute(other, trace, absent="padding")
    assert (why.values > 0).all()


def test_faithful_orders_lose_the_most_first(pipe: Any, trace: xattn.Trace) -> None:
    why = xattn.attribute(pipe, trace, levels=LEVEL, how="shapley")
    asked = why.calls
    found = why.faithfulness(orders=2)
    assert set(found.areas) == {"shapley", "attention", "random"}
    for curve in found.deletion.values():
        assert (curve[0], curve[-1]) == (0, pytest.approx(1))
    first = why.words.index(why.order[0])
    gone = LESS[1 + first]
    wanted = changes_by_hand(pipe, [PROMPT, gone, ""]).mean((1, 2))
    assert found.deletion["shapley"][1] == pytest.approx(float(wanted[0] / wanted[1]), rel=1e-2)
    assert why.calls == asked
    assert found.plot().width == 640


def test_what_cannot_be_asked_is_refused(pipe: Any, trace: xattn.Trace) -> None:
    with pytest.raises(ValueError, match="not a method"):
        xattn.attribute(pipe, trace, how="magic")
    with pytest.raises(ValueError, match="must be one of removed"):
        xattn.attribute(pipe, trace, absent="zero")
    with pytest.raises(ValueError, match="share of the noise schedule"):
        xattn.attribute(pipe, trace, levels=1.5)
    with pytest.raises(ValueError, match="share a token"):
        xattn.attribute(pipe, trace, of=["red", "red car"])
    with pytest.raises(ValueError, match="option of drawing"):
        xattn.attribute(pipe, trace, guidance_scale=2.0)
    with pytest.raises(ValueError, match="two or more"):
        xattn.attribute(pipe, trace, how="information", levels=0.5)
    with pytest.raises(ValueError, match="leave target= out"):
        xattn.attribute(pipe, trace, how="information", target=lambda pictures: pictures)
    with pytest.raises(ValueError, match="a number for each"):
        xattn.attribute(pipe, trace, target=lambda pictures: pictures)
    with pytest.raises(TypeError, match="can't be asked"):
        xattn.attribute(pixart(), PROMPT)
