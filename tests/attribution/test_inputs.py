"""Attribution of inputs: what is absent is really left out, and comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.helpers import picture
from xattn.attribution.importance import bootstrapped, deranged
from xattn.attribution.inputs import Drawing, inputs_of

PROMPT = "a red car"
FAST: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}


def drawn(pipe: Any, prompt: str, seed: int = 0, **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images: torch.Tensor = pipe(prompt, generator=generator, output_type="pt", **options).images
    return images


def test_occlusion_of_inputs_is_the_picture_drawn_without_each() -> None:
    pipe = tiny.sd1()
    options = {**FAST, "negative_prompt": "two cats"}
    why = xattn.attribute(pipe, PROMPT, of="inputs", **options)
    assert why.words == ("prompt", "negative prompt", "seed")
    full = drawn(pipe, PROMPT, **options)
    others = [
        drawn(pipe, "", **options),
        drawn(pipe, PROMPT, **FAST),
        drawn(pipe, PROMPT, seed=1, **options),
    ]
    wanted = [float(((other - full) ** 2).mean()) for other in others]
    np.testing.assert_allclose(why.values, wanted, rtol=1e-3)
    assert why.calls == 4
    assert why.map("seed").shape == (16, 16)


def test_shapley_of_inputs_shares_out_what_all_do_together() -> None:
    pipe = tiny.sd1()
    why = xattn.attribute(pipe, PROMPT, of="inputs", how="shapley", **FAST)
    apart = drawn(pipe, "", seed=1, **FAST) - drawn(pipe, PROMPT, **FAST)
    assert float(why.values.sum()) == pytest.approx(float((apart**2).mean()), rel=1e-3)
    assert set(why.faithfulness(orders=1).areas) == {"shapley", "random"}
    brightness = xattn.attribute(
        pipe, PROMPT, of="inputs", target=lambda pictures: pictures.mean((1, 2, 3)), **FAST
    )
    gone = drawn(pipe, PROMPT, **FAST).mean() - drawn(pipe, "", **FAST).mean()
    assert brightness.scores["prompt"] == pytest.approx(float(gone), abs=1e-5)


def test_pictures_without_inputs_are_drawn_once(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    options: dict[str, Any] = {**FAST, "of": "inputs", "how": "shapley", "cache": tmp_path}
    cost = xattn.attribution_cost(pipe, PROMPT, of="inputs", how="shapley", **FAST)
    assert str(cost) == "shapley of 2 inputs: 4 pictures drawn"
    first = xattn.attribute(pipe, PROMPT, **options)
    assert first.calls == cost.calls
    next(tmp_path.rglob("*.safetensors")).unlink()  # as if interrupted
    again = xattn.attribute(pipe, PROMPT, **options)
    assert again.calls == 1 + 1  # the whole call names the question
    np.testing.assert_allclose(first.values, again.values, rtol=1e-6)
    assert xattn.attribute(pipe, PROMPT, **options, seed=1).calls == 4


def asked(pipe: Any, name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the whole picture, that without an input, and the whole one again."""
    generator = torch.Generator().manual_seed(0)
    given = {**options, "generator": generator, "prompt": PROMPT}
    inputs = inputs_of(pipe, PROMPT, given)
    ask = Drawing(pipe, inputs, given)
    present = torch.tensor([[each.name != name for each in inputs]])
    without = ask.estimates(present)[0]
    again = Drawing(pipe, inputs, given)
    return ask.full, without, again.full


def test_a_control_map_at_scale_0_is_absent() -> None:
    pipe = tiny.controlnet()
    options = {**FAST, "image": picture(16, 16)}
    full, without, again = asked(pipe, "control map", **options)
    wanted = drawn(pipe, PROMPT, controlnet_conditioning_scale=0.0, **options)
    torch.testing.assert_close(without, wanted)
    assert not torch.allclose(full, without)
    assert torch.equal(full, again)


def test_a_grey_initial_image_is_absent() -> None:
    pipe = tiny.sd1_img2img()
    options = {"num_inference_steps": 4, "strength": 0.5, "image": picture(16, 16)}
    full, without, _ = asked(pipe, "initial image", **options)
    grey = Image.new("RGB", (16, 16), (128, 128, 128))
    torch.testing.assert_close(without, drawn(pipe, PROMPT, **{**options, "image": grey}))
    assert not torch.allclose(full, without)


def test_a_lora_is_switched_off_and_on_again() -> None:
    plain, pipe = tiny.sd1(), tiny.sd1()
    tiny.add_lora(pipe)
    full, without, again = asked(pipe, "LoRA", **FAST)
    torch.testing.assert_close(without, drawn(plain, PROMPT, **FAST))
    assert not torch.allclose(full, without)
    assert torch.equal(full, again)


def test_an_image_prompt_is_absent_at_scale_0() -> None:
    plain, pipe = tiny.sd1(), tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    full, without, again = asked(pipe, "image prompt", ip_adapter_image_embeds=embeds, **FAST)
    torch.testing.assert_close(without, drawn(plain, PROMPT, **FAST), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(full, without, atol=1e-3)
    assert torch.equal(full, again)


def test_importance_is_the_change_when_values_are_shuffled() -> None:
    pipe = tiny.sd1()
    items = [{"prompt": text, "seed": n} for n, text in enumerate((PROMPT, "two cats"))]
    found = xattn.importance(pipe, items, **FAST)
    assert found.words == ("prompt", "seed")
    pairs = ((PROMPT, "two cats", 0), ("two cats", PROMPT, 1))
    wanted = [
        float(((drawn(pipe, b, n, **FAST) - drawn(pipe, a, n, **FAST)) ** 2).mean())
        for a, b, n in pairs
    ]
    assert found.scores["prompt"] == pytest.approx(float(np.mean(wanted)), rel=1e-3)
    assert found.intervals is not None
    assert (found.intervals[:, 0] <= found.values).all()
    with pytest.raises(ValueError, match="two or more"):
        xattn.importance(pipe, items[:1])


def test_nothing_stays_in_its_place_and_intervals_hold_the_mean() -> None:
    random = np.random.default_rng(0)
    for count in (2, 3, 7):
        order = deranged(count, random)
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()
    changes = random.random((2, 30))
    low, high = bootstrapped(changes, random).T
    assert ((low < changes.mean(1)) & (changes.mean(1) < high)).all()


def test_other_methods_and_traces_are_refused() -> None:
    pipe = tiny.sd1()
    with pytest.raises(ValueError, match="draws a prompt"):
        xattn.attribute(pipe, PROMPT, of="inputs", how="gradient")
    with pytest.raises(ValueError, match="not an option"):
        xattn.attribute(pipe, PROMPT, of="inputs", strenth=0.5)
