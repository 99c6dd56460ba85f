"""Photographs, inverted and edited, on the tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.helpers import never
from tests.tiny.transformers import sd3
from xattn.api.invert import native_pivots

PROMPT = "a red car on a lawn"
STEPS = 3


def picture(side: int = tiny.SIDE) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def inversion(pipe: Any) -> Any:
    return xattn.invert(pipe, picture(), PROMPT, steps=STEPS)


def found(pipe: Any) -> list[Any]:
    """All that a block could have changed."""
    hooks = len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks)
    processors = [id(processor) for processor in pipe.unet.attn_processors.values()]
    names = ("scheduler", "_progress_bar_config", "encode_prompt")
    return [*hooks, *processors, *(pipe.__dict__.get(name) for name in names)]


class Seen:
    """A callback that keeps the latents of every step."""

    def __init__(self) -> None:
        self.latents: list[torch.Tensor] = []

    def __call__(self, pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.latents.append(tensors["latents"].clone())
        return {}


def test_the_sources_latents_are_the_pivots_bit_for_bit_and_an_empty_edit_too(
    pipe: Any, inversion: Any
) -> None:
    seen = Seen()
    result = xattn.edit(
        pipe, PROMPT, xattn.Replace("red", "blue"), [], source=inversion,
        callback_on_step_end=seen, output_type="latent",
    )  # fmt: skip
    for step, latents in enumerate(seen.latents):
        assert torch.equal(latents[0], inversion.pivots[step + 1, 0])
        assert torch.equal(latents[2], inversion.pivots[step + 1, 0])
        assert not torch.equal(latents[1], inversion.pivots[step + 1, 0])
    assert torch.equal(result.source, inversion.pivots[-1, 0])
    assert torch.equal(result.images[1], result.source)


def test_outside_a_hard_mask_the_latents_are_the_pivots(pipe: Any, inversion: Any) -> None:
    mask = np.zeros((tiny.LATENT, tiny.LATENT), dtype=bool)
    mask[2:6, 4:10] = True
    seen = Seen()
    blend = xattn.LocalBlend(mask=mask, start=0)
    result = xattn.edit(
        pipe, PROMPT, [xattn.Replace("red", "blue"), blend], source=inversion,
        callback_on_step_end=seen, generator=[torch.Generator(), torch.Generator()],
    )  # fmt: skip
    for step, latents in enumerate(seen.latents):
        for row in latents[2:]:  # two images of the source, two of the edit
            assert torch.equal(row[:, ~mask], inversion.pivots[step + 1, 0][:, ~mask])
            assert not torch.equal(row[:, mask], inversion.pivots[step + 1, 0][:, mask])
    assert len(result) == 2
    assert result[1].inversion is inversion
    pasted = np.asarray(result.paste(feather=0))
    outside = ~np.kron(mask, np.ones((2, 2), dtype=bool))
    np.testing.assert_array_equal(pasted[outside], np.asarray(picture())[outside])


def test_words_masks_are_narrowed_at_the_last_step_unless_told_otherwise(
    pipe: Any, inversion: Any
) -> None:
    blue = xattn.Replace("red", "blue")
    result = xattn.edit(
        pipe, PROMPT, [blue, xattn.LocalBlend("car", start=0)],
        [blue, xattn.LocalBlend("car", start=0, changed=0)],
        [blue, xattn.LocalBlend("car", start=0, changed=0.9)], source=inversion, trace=False,
    )  # fmt: skip
    default, whole, least = (mask for mask in result.masks if mask is not None)
    assert torch.equal(default[:-1], whole[:-1])
    cells = [int(mask[-1].sum()) for mask in (whole, default, least)]
    assert cells == sorted(cells, reverse=True)
    assert cells[0] > cells[2] > 0
    drawn = xattn.edit(pipe, PROMPT, [blue, xattn.LocalBlend("car")], num_inference_steps=2)
    assert drawn.plan.siblings[0].blend.changed is None  # an image of its own: as in the paper
    with pytest.raises(ValueError, match=r"changed=1 must be a number in \[0, 1\), or None"):
        xattn.LocalBlend("car", changed=1)


def test_a_photo_is_inverted_and_edited_in_one_call_and_then_again(pipe: Any) -> None:
    before = found(pipe)
    result = xattn.edit(
        pipe, PROMPT, xattn.Replace("red", "blue"), image=picture(100), num_inference_steps=2
    )
    assert result.fidelity is not None
    assert result.fidelity.to_reconstruction > 60
    assert result.source.size == (tiny.SIDE, tiny.SIDE)
    assert result.inversion is not None
    assert result.inversion.original.size == (100, 100)
    again = xattn.edit(pipe, PROMPT, xattn.Reweight("red", 2.0), source=result, guidance_scale=3)
    assert again.inversion is result.inversion
    with pytest.raises(ValueError, match="no LocalBlend that says where it is: pass mask="):
        result.paste()
    assert found(pipe) == before


@pytest.mark.parametrize("make", [lambda: tiny.sd2("dpm++2m"), lambda: tiny.sdxl("euler")])
def test_other_predictions_and_schedules_are_held_too(make: Any) -> None:
    pipe, seen = make(), Seen()
    inversion = xattn.invert(pipe, picture(), PROMPT, steps=2)
    xattn.edit(
        pipe, PROMPT, xattn.Replace("red", "blue"), source=inversion, callback_on_step_end=seen,
        output_type="latent", trace=False,
    )  # fmt: skip
    wanted = native_pivots(pipe, inversion)
    assert torch.equal(seen.latents[0][:1], wanted[1])
    assert torch.equal(seen.latents[1][:1], inversion.pivots[-1])


@pytest.mark.parametrize("method", ["negative", "null-text", "edit-friendly"])
def test_methods_keep_more_of_a_photo_than_plain_ddim(pipe: Any, method: str) -> None:
    def source(name: str) -> torch.Tensor:
        found = xattn.invert(pipe, picture(), PROMPT, method=name, steps=STEPS, measure=False)
        result = xattn.edit(pipe, PROMPT, source=found, output_type="latent", trace=False)
        return (result.source - found.pivots[-1, 0]).square().mean()

    states = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    assert source(method) < source("ddim")
    assert all(torch.equal(value, states[name]) for name, value in pipe.unet.state_dict().items())
    assert all(weight.requires_grad for weight in pipe.unet.parameters())
    assert not pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("method", ["direct", "rf-solver"])
def test_photographs_of_flow_matching_models_are_edited_too(method: str) -> None:
    pipe, seen = sd3(t5=False), Seen()
    inversion = xattn.invert(pipe, picture(), PROMPT, method=method, steps=2, measure=False)
    xattn.edit(
        pipe, PROMPT, xattn.Replace("red", "blue"), source=inversion, callback_on_step_end=seen,
        output_type="latent", trace=False,
    )  # fmt: skip
    assert len(seen.latents) == inversion.calls
    same = torch.equal(seen.latents[-1][:1], inversion.pivots[-1])
    assert same == (method == "direct")


def test_an_inversion_is_saved_and_loaded_whole(inversion: Any, tmp_path: Path) -> None:
    inversion.save(tmp_path / "photo.safetensors")
    loaded = xattn.load_inversion(tmp_path / "photo.safetensors")
    assert torch.equal(loaded.pivots, inversion.pivots)
    assert (loaded.prompt, loaded.method, loaded.timesteps, loaded.maker) == (
        inversion.prompt, inversion.method, inversion.timesteps, inversion.maker
    )  # fmt: skip
    assert loaded.fidelity == inversion.fidelity
    data = bytearray((tmp_path / "photo.safetensors").read_bytes())
    data[-50] ^= 1
    (tmp_path / "photo.safetensors").write_bytes(data)
    with pytest.raises(xattn.FileError, match="has changed"):
        xattn.load_inversion(tmp_path / "photo.safetensors")
    inversion.save(tmp_path / "photo.safetensors")
    with pytest.raises(xattn.FileError, match=r"is an inversion, .* use xattn\.load_inversion"):
        xattn.load(tmp_path / "photo.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no inversion at"):
        xattn.load_inversion(tmp_path / "none.safetensors")


def test_an_inversion_fits_no_other_prompt_schedule_or_model(pipe: Any, inversion: Any) -> None:
    blue = xattn.Replace("red", "blue")
    with pytest.raises(ValueError, match="inverted with the prompt 'a red car on a lawn', not"):
        xattn.edit(pipe, "a red car", blue, source=inversion)
    with pytest.raises(ValueError, match="num_inference_steps= cannot be had with an inverted"):
        xattn.edit(pipe, PROMPT, blue, source=inversion, num_inference_steps=5)
    with pytest.raises(ValueError, match="with DDIMScheduler, and the pipeline has PNDMScheduler"):
        xattn.edit(tiny.sd1("pndm"), PROMPT, blue, source=inversion)
    with pytest.raises(ValueError, match="one with other weights or LoRAs"):
        xattn.edit(tiny.sd1(seed=1), PROMPT, blue, source=inversion)


def test_what_a_photo_cannot_be_is_refused_before_anything_runs(pipe: Any) -> None:
    blue = xattn.Replace("red", "blue")
    with pytest.raises(ValueError, match="'rf-solver' needs a flow-matching model"):
        xattn.edit(pipe, PROMPT, blue, image=picture(), method="rf-solver")
    with pytest.raises(ValueError, match="start from the words that say what it shows"):
        xattn.edit(pipe, "", blue, image=picture())
    with pytest.raises(ValueError, match="image= and source= are two photographs"):
        xattn.edit(pipe, PROMPT, blue, image=picture(), source=_result_of(pipe))
    with pytest.raises(ValueError, match="method='direct' is for photographs"):
        xattn.edit(pipe, PROMPT, blue, method="direct")
    with pytest.raises(ValueError, match="negative pass of guidance, so it needs more than 1"):
        xattn.invert(pipe, picture(), PROMPT, method="null-text", steps=2, guidance_scale=1.0)
    with pytest.raises(TypeError, match="draws over a picture of its own accord"):
        xattn.invert(tiny.sd1_img2img(), picture(), PROMPT)


def test_an_edit_that_does_not_fit_is_refused_before_the_inversion() -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    with pytest.raises(xattn.WordError, match="'blu' is not in the prompt"):
        xattn.edit(pipe, PROMPT, xattn.Replace("blu", "red"), image=picture())
    with pytest.raises(ValueError, match=r"steps= is not an option .* num_inference_steps"):
        xattn.edit(pipe, PROMPT, xattn.Replace("red", "blue"), image=picture(), steps=5)


def test_pasting_says_what_it_takes(pipe: Any) -> None:
    result = _result_of(pipe)
    with pytest.raises(TypeError, match="number of an edit, not Image; a photograph is original="):
        result.paste(picture())
    with pytest.raises(TypeError, match=r"must be a PIL image, not str; open a file by PIL\.Image"):
        result.paste(original="photo.jpg")


def _result_of(pipe: Any) -> Any:
    return xattn.edit(pipe, PROMPT, keep_source=True, num_inference_steps=1)


def test_an_interrupted_edit_of_a_photo_leaves_the_pipeline_as_it_was() -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    pipe = sd3(t5=False)

    def state() -> list[Any]:
        model = pipe.transformer
        hooks = [*model._forward_hooks, *model._forward_pre_hooks]
        names = ("scheduler", "_progress_bar_config", "encode_prompt")
        own = [pipe.__dict__.get(name) for name in names]
        return [*hooks, *map(id, model.attn_processors.values()), *own]

    before = state()
    for method in ("direct", "rf-solver", "fireflow", "flowedit", "uniedit"):
        with pytest.raises(KeyboardInterrupt):
            xattn.edit(
                pipe, PROMPT, xattn.Replace("red", "blue"), image=picture(), method=method,
                num_inference_steps=2, callback_on_step_end=interrupt, trace=False,
            )  # fmt: skip
        assert state() == before


def test_an_interrupted_inversion_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    def interrupt(*args: Any) -> Any:
        raise KeyboardInterrupt

    before = found(pipe)
    for method in ("direct", "null-text"):
        with pytest.raises(KeyboardInterrupt):
            xattn.invert(
                pipe, picture(), PROMPT, method=method, steps=2, callback_on_step_end=interrupt
            )
    assert found(pipe) == before
