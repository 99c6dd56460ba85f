"""Measures of maps whose answers are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xattn.maps import measures

EVEN = np.ones((4, 8))
SPOT = np.zeros((4, 8))
SPOT[1, 6] = 3.0
ZERO = np.zeros((4, 8))


def test_moments() -> None:
    heat = np.array([[0.0, 1.0], [2.0, 5.0]])
    assert measures.mean(heat) == 2.0
    assert measures.maximum(heat) == 5.0
    assert measures.std(heat) == pytest.approx(math.sqrt(14 / 4))


def test_the_peak_is_the_middle_of_the_highest_cell() -> None:
    assert measures.peak(SPOT) == measures.centre(SPOT)
    assert measures.peak(np.array([[1.0, 3.0], [3.0, 0.0]])) == (0.25, 0.75)  # the first of equals
    assert measures.peak(np.zeros((2, 2))) == (0.25, 0.25)


def test_the_table_holds_every_measure_once() -> None:
    found = measures.measured(SPOT)
    assert list(found) == [*measures.NUMBERS, *measures.PLACES]
    assert all(isinstance(found[name], float) for name in measures.NUMBERS)
    assert all(isinstance(found[name], tuple) for name in measures.PLACES)
    assert found["focus_area"] == 1 / 32
    assert found["focus"] == 31 / 32


def test_focus_area_is_the_smallest_share_that_holds_half_the_mass() -> None:
    assert measures.focus_area(SPOT) == 1 / 32
    assert measures.focus_area(EVEN) == 0.5
    assert measures.focus_area(EVEN, share=0.25) == 0.25
    assert measures.focus_area(EVEN, share=1.0) == 1.0
    assert measures.focus_area(np.array([[4.0, 3.0, 2.0, 1.0]])) == 0.5
    assert measures.focus_area(ZERO) == 1.0
    with pytest.raises(ValueError, match="share"):
        measures.focus_area(EVEN, share=0)


def test_centre_is_row_and_column_in_shares() -> None:
    assert measures.centre(EVEN) == pytest.approx((0.5, 0.5))
    assert measures.centre(SPOT) == pytest.approx((1.5 / 4, 6.5 / 8))
    assert measures.centre(ZERO) == (0.5, 0.5)


def test_entropy_runs_from_a_single_cell_to_an_even_map() -> None:
    assert measures.entropy(SPOT) == 0.0
    assert measures.entropy(EVEN) == pytest.approx(1.0)
    assert measures.entropy(EVEN, normalized=False) == pytest.approx(math.log(32))
    assert measures.entropy(ZERO) == 1.0
    assert measures.entropy(np.array([[1.0, 1.0, 0.0, 0.0]])) == pytest.approx(0.5)
    assert measures.entropy(np.ones((1, 1))) == 0.0


def test_a_threshold_is_a_share_of_the_maximum() -> None:
    heat = np.array([[0.0, 1.0, 2.0, 4.0]])
    assert measures.threshold_mask(heat, 0.5).tolist() == [[False, False, True, True]]
    assert measures.threshold_mask(heat, 1.0).sum() == 1
    assert measures.threshold_mask(heat, 0.0).all()
    assert not measures.threshold_mask(ZERO, 0.0).any()
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share of the maximum"):
            measures.threshold_mask(heat, wrong)


def test_iou_with_a_mask() -> None:
    heat = np.array([[0.0, 1.0, 2.0, 4.0]])
    mask = np.array([[0, 1, 1, 0]])
    assert measures.iou(heat, mask, 0.5) == 1 / 3
    assert measures.iou(heat, mask, 0.25) == 2 / 3
    assert measures.iou(ZERO, np.zeros_like(ZERO)) == 0.0


def test_best_iou_is_the_best_of_every_threshold() -> None:
    rng = np.random.default_rng(0)
    heat = rng.integers(0, 9, (6, 7)).astype(float)  # many values are equal
    mask = rng.random((6, 7)) > 0.6
    every = {t: measures.iou(heat, mask, t) for t in np.unique(heat) / heat.max()}
    best, threshold = measures.best_iou(heat, mask)
    assert best == max(every.values())
    assert every[threshold] == best
    assert measures.best_iou(ZERO, mask[:4, :8][:, :1].repeat(8, 1)) == (0.0, 1.0)


def test_pointing_game() -> None:
    mask = np.zeros((4, 8), dtype=bool)
    mask[1, 6] = True
    assert measures.pointing(SPOT, mask)
    assert not measures.pointing(SPOT, ~mask)


@pytest.mark.parametrize(
    "wrong", [np.ones(4), np.ones((0, 3)), -EVEN, np.full((2, 2), np.nan), np.ones((2, 2, 2))]
)
def test_what_is_no_map_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="map"):
        measures.mean(wrong)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="resize"):
        measures.iou(EVEN, np.ones((8, 4)))
