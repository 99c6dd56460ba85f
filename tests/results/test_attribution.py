"""An attribution's table, chart and orders, from numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from xattn.results.attribution import Attribution
from xattn.results.faithfulness import area, faithfulness
from xattn.views import charts

WORTH = np.array([1.0, 4.0, 2.0])


def additive(present: NDArray[np.bool_]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = present @ WORTH
    return found


def made(**more: object) -> Attribution:
    return Attribution(("a", "red", "car"), np.array([0.1, 0.5, -0.2]), **more)  # type: ignore[arg-type]


def test_scores_order_and_table() -> None:
    why = made(intervals=np.array([[0.0, 0.2], [0.4, 0.6], [-0.3, -0.1]]))
    assert why.scores == {"a": 0.1, "red": 0.5, "car": -0.2}
    assert why.order == ("red", "a", "car")
    first, second, *_ = why.table().splitlines()
    assert first.split() == ["word", "score", "95", "%"]
    assert second.split() == ["red", "0.5", "0.4", "to", "0.6"]
    with pytest.raises(ValueError, match="one of the words"):
        made(maps=np.zeros((3, 2, 2), np.float32)).map("blue")


def test_a_map_shows_no_cell_below_zero() -> None:
    maps = np.array([[[-1.0, 2.0]]] * 3, dtype=np.float32)
    assert np.asarray(made(maps=maps).map("red")).tolist() == [[0.0, 2.0]]


def test_the_best_order_of_an_additive_target_has_the_largest_areas() -> None:
    found = faithfulness(additive, {"best": WORTH, "worst": -WORTH}, orders=3)
    assert found.deletion["best"].tolist() == pytest.approx([0, 4 / 7, 6 / 7, 1])
    assert found.insertion["worst"].tolist() == pytest.approx([0, 1 / 7, 3 / 7, 1])
    best, random, worst = (found.areas[name] for name in ("best", "random", "worst"))
    assert best[0] > random[0] > worst[0]
    assert best[1] > random[1] > worst[1]
    assert area(np.array([0.0, 1.0])) == 0.5


def test_a_target_that_loses_nothing_has_flat_curves() -> None:
    found = faithfulness(lambda present: np.zeros(len(present)), {"any": WORTH}, orders=0)
    assert found.areas == {"any": (0.0, 0.0)}


def test_without_a_model_there_is_nobody_to_ask() -> None:
    with pytest.raises(ValueError, match="asks the model again"):
        made().faithfulness()


def test_bars_go_left_and_right_of_zero() -> None:
    drawn = np.asarray(charts.bars(["up", "down"], np.array([1.0, -0.5])))
    blue = (drawn == charts.UP).all(-1).any(0).nonzero()[0]
    red = (drawn == charts.DOWN).all(-1).any(0).nonzero()[0]
    assert red.max() <= blue.min() + 1
    assert (blue.max() - blue.min()) == pytest.approx(2 * (red.max() - red.min()), abs=3)
