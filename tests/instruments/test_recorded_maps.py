"""Recorded maps are the probabilities, on the axes and in the bytes that were asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import xattn
from tests import tiny
from tests.helpers import CAR, LATENT, OTHER, dense_probs, draw, picture
from xattn.maps import select


@pytest.mark.parametrize("family", [tiny.sd1, tiny.sd2, tiny.sdxl])
def test_maps_are_the_softmax_of_the_conditional_rows(family: Callable[..., Any]) -> None:
    pipe = family()
    dense = dense_probs(pipe, prompt=[CAR, OTHER])
    with xattn.record(pipe, keep=("step", "layer", "head"), dtype=torch.float32) as trace:
        draw(pipe, prompt=[CAR, OTHER])
    run = trace.run
    assert {layer.name for layer in run.layers} == set(dense)
    for i, layer in enumerate(run.layers):
        probs = torch.stack(dense[layer.name])[:, 2:]  # (steps, images, heads, queries, tokens)
        torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[..., 0]))
        expected = probs[..., list(run.positions)].transpose(-1, -2)
        torch.testing.assert_close(run.maps(i).flatten(-2), expected, atol=1e-6, rtol=1e-5)


def test_heat_maps_equal_a_dense_computation_of_the_definition(sd1: Any) -> None:
    dense = dense_probs(sd1)
    with xattn.record(sd1, dtype=torch.float32) as trace:
        draw(sd1)
    position = 2  # <start> a red
    layers = []
    for probs in dense.values():
        summed = sum(p[1, :, :, position].mean(0) for p in probs)
        side = int(summed.numel() ** 0.5)  # type: ignore[union-attr]
        grid = summed.reshape(1, 1, side, side)  # type: ignore[union-attr]
        up = F.interpolate(grid, size=(LATENT, LATENT), mode="bicubic", align_corners=False)
        layers.append(up[0, 0].clamp(min=0))
    expected = torch.stack(layers).mean(0).numpy()
    got = np.asarray(trace.heatmap("red", layers="all"))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "keep",
    [("step", "layer", "head"), ("step",), ("layer",), (), ("layer", "head"), ("step", "layer")],
)
def test_dropped_axes_are_averages_of_the_kept_ones(sd1: Any, keep: tuple[str, ...]) -> None:
    full = ("step", "layer", "head")
    with xattn.record(sd1, keep=full, dtype=torch.float32) as whole:
        draw(sd1)
    with xattn.record(sd1, keep=keep, dtype=torch.float32) as trace:
        draw(sd1)
    run = trace.run
    for i, layer in enumerate(run.layers):
        members = [j for j, each in enumerate(whole.run.layers) if each.name in layer.members]
        expected = torch.stack([whole.run.maps(j) for j in members]).mean(0)
        if "head" not in keep:
            expected = expected.mean(2, keepdim=True)
        if "step" not in keep:
            expected = expected.mean(0, keepdim=True)
        torch.testing.assert_close(run.maps(i), expected, atol=1e-6, rtol=1e-5)
    assert behind(run) == behind(whole.run)


def behind(run: Any) -> set[str]:
    """The layers that a heat map is made of by default, those behind an average too."""
    return {name for i in select.layers_of(run)[0] for name in run.layers[i].members}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    "keep", [("step", "layer"), ("step",), ("layer",), ("step", "layer", "head")]
)
def test_bytes_are_known_before_the_first_step_and_kept_to(sd1: Any, keep: Any, dtype: Any) -> None:
    known: list[int] = []

    def look(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        known.append(trace.nbytes)
        return kwargs

    with xattn.record(sd1, keep=keep, dtype=dtype) as trace:
        draw(sd1, callback_on_step_end=look)
    run = trace.run
    areas = [layer.area * (layer.heads if "head" in keep else 1) for layer in run.layers]
    steps = 3 if "step" in keep else 1
    expected = steps * 7 * sum(areas) * dtype.itemsize
    assert known == [expected] * 3
    assert trace.nbytes == expected


def test_words_limit_what_is_kept(sd1: Any) -> None:
    with xattn.record(sd1, words=["red", "green lawn"]) as trace:
        draw(sd1)
    assert trace.run.positions == (2, 6, 7)
    with pytest.raises(ValueError, match="car"):
        trace.heatmap("car")


def test_the_whole_token_axis_can_be_kept_and_its_rows_sum_to_one(sd1: Any) -> None:
    with xattn.record(sd1, words=range(77), dtype=torch.float32) as trace:
        draw(sd1)
    assert trace.run.positions == tuple(range(77))
    for i in range(len(trace.run.layers)):
        sums = trace.run.maps(i).sum(3)
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert trace.heatmap(0).shape == (LATENT, LATENT)  # the start token, where attention rests
    np.testing.assert_array_equal(trace.heatmap([2, 3]), trace.heatmap("red car"))


def test_layers_are_chosen_by_name_or_glob(sd1: Any) -> None:
    with xattn.record(sd1, layers="up_blocks.*") as trace:
        draw(sd1)
    assert {layer.name.split(".")[0] for layer in trace.run.layers} == {"up_blocks"}
    with (
        pytest.raises(ValueError, match=r"nothing\.\*.*mid_block"),
        xattn.record(sd1, layers="nothing.*"),
    ):
        pass


@pytest.mark.parametrize("keep", [("step", "layer"), ("layer",)])
def test_maps_streamed_to_a_folder_are_the_same(sd1: Any, tmp_path: Any, keep: Any) -> None:
    with xattn.record(sd1, keep=keep) as memory:
        draw(sd1)
    with xattn.record(sd1, keep=keep, to=tmp_path / "run") as disk:
        draw(sd1)
    assert disk.nbytes == memory.nbytes
    for i in range(len(memory.run.layers)):
        assert torch.equal(memory.run.maps(i), disk.run.maps(i))
    loaded = xattn.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.heatmap("red"), memory.heatmap("red"))


def test_what_does_not_fit_is_refused_before_the_first_step(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([(10**9, "the device"), (40_000, "this machine's memory")])
    monkeypatch.setattr("xattn.records.room.free_bytes", lambda *_: next(free))
    calls: list[Any] = []
    handle = sd1.unet.register_forward_hook(lambda *_: calls.append(1))
    fitting = r"40\.0 kB free; what would fit: .*keep="
    keep = ("step", "layer", "head")
    with pytest.raises(MemoryError, match=fitting) as caught, xattn.record(sd1, keep=keep):
        draw(sd1)
    handle.remove()
    assert calls == []
    assert "folder" in str(caught.value)


def test_two_recordings_into_one_folder_stay_apart(sd1: Any, tmp_path: Any) -> None:
    with xattn.record(sd1, to=tmp_path, words="red") as first:
        draw(sd1)
    kept = np.asarray(first.heatmap("red"))
    with xattn.record(sd1, to=tmp_path, words="cats") as second:
        draw(sd1, OTHER)
    np.testing.assert_array_equal(first.heatmap("red"), kept)
    assert [run.prompts[0].text for run in xattn.load(tmp_path).runs] == [CAR, OTHER]
    assert (np.asarray(second.heatmap("cats")) != kept).any()


def test_a_controlnets_share_of_an_average_is_kept() -> None:
    pipe = tiny.controlnet()
    layers = ["controlnet.*", "*"]
    with xattn.record(pipe, layers=layers, dtype=torch.float32) as apart:
        draw(pipe, image=picture())
    with xattn.record(pipe, layers=layers, keep="step", dtype=torch.float32) as merged:
        draw(pipe, image=picture())
    for i, layer in enumerate(merged.run.layers):
        members = [j for j, x in enumerate(apart.run.layers) if x.name in layer.members]
        expected = torch.stack([apart.run.maps(j) for j in members]).mean(0)
        torch.testing.assert_close(merged.run.maps(i), expected, atol=1e-6, rtol=1e-5)
    assert behind(merged.run) == behind(apart.run)
    assert any(layer.middle for layer in merged.run.layers)
    names = [layer.name for layer in merged.run.layers]
    assert len(set(names)) == len(names)


def test_an_average_can_not_be_read_before_its_end(sd1: Any) -> None:
    def look(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        with (
            pytest.raises(ValueError, match="no step of this run is complete")
            if step < 2
            else (contextlib.nullcontext())
        ):
            trace.heatmap("red")
        return kwargs

    with xattn.record(sd1, keep="layer") as trace:
        draw(sd1, callback_on_step_end=look)
    assert trace.heatmap("red").maximum > 0
