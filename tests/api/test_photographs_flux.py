"""Photographs with FLUX.1: latents that the pipeline packs, and a schedule that goes by size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlPipeline, FluxPipeline
from PIL import Image

import xattn
from tests.tiny.transformers import flux, flux_transformer
from xattn.models.packing import packed, unpacked
from xattn.toyland import scene

PROMPT = "a red car"
SHORT = {"max_sequence_length": 24}


def shifted() -> Any:
    """Return a pipeline whose schedule goes by the size, as FLUX.1-dev's."""
    return flux(scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


def photo() -> Image.Image:
    return scene(3).image.resize((64, 48))


def test_latents_are_packed_as_by_diffusers() -> None:
    latents = torch.randn(3, 2, 4, 6, 8)
    pipe = flux()
    found = packed(pipe, latents)
    for row, each in zip(found, latents, strict=True):
        assert torch.equal(row, FluxPipeline._pack_latents(each, 2, 4, 6, 8))
    assert torch.equal(unpacked(pipe, found, (6, 8)), latents)


def decodes_alike(pipe: Any) -> bool:
    """Return whether a row is decoded alone as beside another; by torch 2.6 it isn't."""
    z = torch.randn(1, 4, 24, 32, generator=torch.Generator().manual_seed(0))
    pair = pipe.vae.decode(z.repeat(2, 1, 1, 1)).sample
    return torch.equal(pair[:1], pipe.vae.decode(z).sample)


@pytest.mark.parametrize("method", ["direct", "flowedit", "uniedit"])
def test_the_source_is_the_reconstruction_bit_for_bit(method: str) -> None:
    pipe = shifted()
    inversion = xattn.invert(pipe, photo(), PROMPT, method=method, steps=4, size=(48, 64), **SHORT)
    assert inversion.pivots.shape == (5, 1, 4, 24, 32)
    edit = [xattn.Replace("red", "blue"), xattn.LocalBlend("car", threshold=0.3)]
    result = xattn.edit(pipe, PROMPT, edit, source=inversion, **SHORT)
    one, two = np.asarray(result.source, int), np.asarray(inversion.reconstruction, int)
    assert abs(one - two).max() <= (0 if decodes_alike(pipe) else 1)
    assert (np.asarray(result.images[0]) != np.asarray(result.source)).any()
    assert result.paste().size == (64, 48)


def test_the_source_is_at_its_pivot_after_each_step() -> None:
    pipe, seen = shifted(), []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return {}

    inversion = xattn.invert(pipe, photo(), PROMPT, steps=4, size=(48, 64), **SHORT)
    xattn.edit(
        pipe, PROMPT, xattn.Replace("red", "blue"), source=inversion, callback_on_step_end=keep,
        **SHORT,
    )  # fmt: skip
    for found, pivot in zip(seen, inversion.pivots[1:], strict=True):
        assert torch.equal(found[:1], packed(pipe, pivot))
        assert not torch.equal(found[1], found[0])


@pytest.mark.parametrize("method", ["euler", "flowedit"])
def test_levels_are_those_of_the_pipelines_own_schedule(method: str) -> None:
    pipe = shifted()
    inversion = xattn.invert(
        pipe, photo(), PROMPT, method=method, steps=4, size=(48, 64), measure=False, **SHORT
    )
    pipe(PROMPT, num_inference_steps=4, height=48, width=64, output_type="latent", **SHORT)
    assert inversion.timesteps == pytest.approx(pipe.scheduler.timesteps.tolist())


def test_a_second_order_climb_comes_back_nearer(tmp_path: Path) -> None:
    pipe = shifted()
    options = {"steps": 4, "size": (48, 64), "guidance_scale": 1.0, **SHORT}
    euler, better = (
        xattn.invert(pipe, photo(), PROMPT, method=method, **options)
        for method in ("euler", "fireflow")
    )
    assert euler.fidelity is not None
    assert better.fidelity is not None
    assert better.fidelity.to_reconstruction > euler.fidelity.to_reconstruction
    better.save(tmp_path / "photo.safetensors")
    again = xattn.load_inversion(tmp_path / "photo.safetensors")
    assert torch.equal(again.pivots, better.pivots)


def test_a_transformer_that_takes_more_than_latents_is_refused() -> None:
    pipe = flux(cls=FluxControlPipeline, transformer=flux_transformer(in_channels=32))
    with pytest.raises(TypeError, match=r"takes 32 channels .* packed latents have 16"):
        xattn.invert(pipe, photo(), PROMPT, steps=2)
