"""A heat map is an array that can be looked at, measured and turned into a mask."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xattn.maps.measures import MEASURES
from xattn.results.heatmap import HeatMap


@pytest.fixture
def heat() -> HeatMap:
    rows, columns = np.mgrid[0:8, 0:12]
    return HeatMap(np.exp(-((rows - 2) ** 2 + (columns - 9) ** 2) / 4), "red", {"image": 0})


def test_it_is_a_float32_array_that_cannot_be_changed(heat: Any) -> None:
    array = np.asarray(heat)
    assert array.dtype == np.float32
    assert array.shape == heat.shape == (8, 12)
    assert np.asarray(heat, dtype=float).dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        heat.word = "blue"
    assert repr(heat) == "HeatMap('red', 8x12, maximum 1)"


@pytest.mark.parametrize("wrong", [np.ones(3), np.full((2, 2), np.nan), -np.ones((2, 2))])
def test_what_is_no_map_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="heat map"):
        HeatMap(wrong)


def test_resize_takes_height_before_width(heat: Any) -> None:
    big = heat.resize((64, 96))
    assert big.shape == (64, 96)
    assert big.word == "red"
    assert big.meta == heat.meta
    assert np.asarray(big).min() >= 0
    row, column = np.unravel_index(np.asarray(big).argmax(), big.shape)
    assert (int(row // 8), int(column // 8)) == (2, 9)
    assert heat.resize((8, 12)) is heat
    with pytest.raises(ValueError, match="height, width"):
        heat.resize((0, 3))


def test_an_overlay_can_stand_beside_the_picture_with_its_scale(heat: Any) -> None:
    under = Image.new("RGB", (96, 64), (200, 30, 30))
    alone = np.asarray(heat.overlay(under))
    both = np.asarray(heat.overlay(under, beside=True, colorbar=True))
    assert np.array_equal(both[:, :96], np.asarray(under))
    assert np.array_equal(both[:, 104:200], alone)
    ramp = both[:, 200:].reshape(-1, 3).astype(int)  # what is right of it holds both end colours
    for colour in ((0, 0, 4), (252, 255, 164)):  # inferno's first and last
        assert (np.abs(ramp - colour).max(1) <= 16).any()


def test_mask_is_on_the_grid_of_the_map(heat: Any) -> None:
    assert heat.mask(1.0).sum() == 1
    assert heat.mask(1.0)[2, 9]
    assert heat.mask(0.4).dtype == bool
    assert heat.mask(0.0).all()
    assert heat.resize((64, 96)).mask(0.4).shape == (64, 96)


def test_smoothing_keeps_an_even_map_and_spreads_a_spot(heat: Any) -> None:
    even = HeatMap(np.full((5, 3), 2.0))
    np.testing.assert_allclose(even.smooth(1.5), even, rtol=1e-6)
    spot = np.zeros((21, 21))
    spot[10, 10] = 1
    wide = HeatMap(spot.astype("float32")).smooth(2.0)
    assert wide.array.sum() == pytest.approx(1, abs=1e-4)
    assert wide.array[10, 12] == pytest.approx(wide.array[10, 10] * np.exp(-0.5), rel=1e-4)
    np.testing.assert_allclose(wide.array, wide.array.T, atol=1e-7)
    assert heat.smooth(0) is heat
    with pytest.raises(ValueError, match="sigma"):
        heat.smooth(-1)


def test_sharpening_keeps_the_maximum(heat: Any) -> None:
    sharp = heat.sharpen(0.5)
    np.testing.assert_allclose(sharp, np.asarray(heat) ** 2, atol=1e-6)
    assert sharp.entropy < heat.entropy < heat.sharpen(2).entropy
    assert heat.sharpen(1) is heat
    with pytest.raises(ValueError, match="temperature"):
        heat.sharpen(0)


def test_normalized_has_a_maximum_of_one() -> None:
    assert HeatMap(np.array([[1.0, 4.0]])).normalized().array.tolist() == [[0.25, 1.0]]
    zero = HeatMap(np.zeros((2, 2), "float32"))
    assert zero.normalized() is zero
    assert zero.sharpen(0.5) is zero


def test_measures_are_properties() -> None:
    heat = HeatMap(np.array([[0.0, 0.0, 0.0, 2.0]]))
    assert heat.measure() == {
        "mean": 0.5,
        "maximum": 2.0,
        "std": pytest.approx(np.sqrt(0.75)),
        "focus_area": 0.25,
        "focus": 0.75,
        "centre": (0.5, 0.875),
        "peak": (0.5, 0.875),
        "entropy": 0.0,
    }
    assert set(heat.measure()) == set(MEASURES)
    assert all(value == getattr(heat, name) for name, value in heat.measure().items())


def test_masks_of_the_image_s_size_can_be_compared(heat: Any) -> None:
    mask = heat.resize((64, 96)).mask(0.5)
    assert heat.iou(mask, 0.5) == 1.0
    assert heat.iou(mask) == 1.0
    assert heat.iou(~mask, 0.5) == 0.0
    assert heat.points_at(mask)
    assert not heat.points_at(~mask)
    with pytest.raises(ValueError, match="mask"):
        heat.iou(np.ones(4))


def test_the_overlay_is_brightest_where_the_map_is_highest(heat: Any) -> None:
    shown = heat.overlay(Image.new("RGB", (96, 64), (90, 120, 90)))
    assert shown.size == (96, 64)
    light = np.asarray(shown.convert("L"), dtype=int)
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert (int(row // 8), int(column // 8)) == (2, 9)


def test_the_overlay_draws_on_its_picture_or_on_grey(heat: Any) -> None:
    assert heat.overlay(opacity=0).size == (96, 64)
    assert heat.overlay(opacity=0).getcolors() == [(96 * 64, (128, 128, 128))]
    red = Image.new("RGB", (24, 16), (255, 0, 0))
    known = dataclasses.replace(heat, picture=red)
    assert known.overlay(opacity=0).getcolors() == [(24 * 16, (255, 0, 0))]


def test_wrong_options_are_clear(heat: Any) -> None:
    with pytest.raises(ValueError, match=r"opacity must be in \[0, 1\]"):
        heat.overlay(opacity=2)
    with pytest.raises(ValueError, match="colormap"):
        heat.overlay(colormap="no such map")
    with pytest.raises(ValueError, match="PIL image"):
        heat.overlay(np.zeros((3, 3)))


def test_a_notebook_shows_it(heat: Any) -> None:
    shown = Image.open(io.BytesIO(heat._repr_png_()))
    assert shown.size == (96, 64)


def test_areas_and_ranges_of_a_map() -> None:
    heat = HeatMap(np.array([[1.0, 2.0], [3.0, 5.0]], np.float32))
    assert heat.minimum == 1
    assert heat.area(0.5) == 0.5  # 3 and 5 reach half of 5
    np.testing.assert_allclose(heat.normalized("range"), [[0, 0.25], [0.5, 1]])
    assert not np.asarray(HeatMap(np.ones((2, 2))).normalized("range")).any()
    with pytest.raises(ValueError, match="by='mean' is neither maximum nor range"):
        heat.normalized("mean")


def test_a_map_is_saved_as_a_picture_or_as_numbers(heat: Any, tmp_path: Path) -> None:
    heat.save(tmp_path / "red.png", colorbar=True)
    drawn = np.asarray(heat.overlay(colorbar=True))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "red.png")), drawn)
    heat.save(str(tmp_path / "red.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "red.npy"), heat.array)
    for name, options, said in (
        ("red", {}, r"must end in \.png .* written by trace\.save"),
        ("red.safetensors", {}, r"must end in \.png"),
        ("red.npy", {"colorbar": True}, "numbers take none of overlay's options"),
    ):
        with pytest.raises(ValueError, match=said):
            heat.save(tmp_path / name, **options)
