"""Shapley's axioms, on games whose answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from xattn.attribution import shapley


def game(count: int, seed: int = 0) -> Tensor:
    """Return a random value for each row of ``subsets``; nothing is worth nothing."""
    values = torch.randn(2**count, generator=torch.Generator().manual_seed(seed)).double()
    values[0] = 0
    return values


def by_orders(values: Tensor, count: int) -> list[float]:
    """Average what each word adds over every order, by the definition."""
    total = [0.0] * count
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        subset = 0
        for word in order:
            total[word] += float(values[subset + 2**word] - values[subset])
            subset += 2**word
    return [each / len(orders) for each in total]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_exact_values_are_the_mean_over_all_orders(count: int) -> None:
    values = game(count)
    assert shapley.exact(values).tolist() == pytest.approx(by_orders(values, count), abs=1e-12)


def test_the_values_share_out_the_whole_game() -> None:
    values = game(8)
    assert float(shapley.exact(values).sum()) == pytest.approx(float(values[-1]), abs=1e-6)


def test_words_that_do_the_same_get_the_same() -> None:
    values, present = game(4), shapley.subsets(4)
    swapped = present[:, [1, 0, 2, 3]].long() @ 2 ** torch.arange(4)
    even = (values + values[swapped]) / 2
    first, second, *others = shapley.exact(even).tolist()
    assert first == pytest.approx(second, abs=1e-6)
    assert others[0] != pytest.approx(first, abs=1e-6)


def test_a_word_that_changes_nothing_gets_nothing() -> None:
    values, present = game(5), shapley.subsets(5)
    without = present.clone()
    without[:, 3] = False
    null = values[without.long() @ 2 ** torch.arange(5)]
    found = shapley.exact(null)
    assert float(found[3]) == pytest.approx(0.0, abs=1e-6)
    assert float(found.abs().sum()) > 0.1


def test_maps_are_shared_out_cell_by_cell() -> None:
    cells = torch.stack([game(3, seed) for seed in range(6)], dim=1).unflatten(1, (2, 3))
    found = shapley.exact(cells)
    assert found.shape == (3, 2, 3)
    torch.testing.assert_close(found[:, 1, 2], shapley.exact(cells[:, 1, 2]))


def test_sampled_orders_share_out_the_whole_game_and_cover_the_exact_values() -> None:
    count = 6
    values = game(count)
    orders = shapley.sampled(count, 60, seed=1)
    present = shapley.along(orders)
    assert present[:, 0].sum() == 0
    assert present[:, -1].all()
    gains = shapley.gained(orders, values[present.long() @ 2 ** torch.arange(count)])
    mean, half = shapley.interval(gains)
    assert float(mean.sum()) == pytest.approx(float(values[-1]), abs=1e-6)
    exact = shapley.exact(values)
    assert ((exact - mean).abs() <= half).sum() >= count - 1
    assert float(half.max()) < 1.0


def test_every_second_order_is_the_reverse_of_the_one_before() -> None:
    orders = shapley.sampled(5, 8, seed=0)
    assert len(orders) == 8
    torch.testing.assert_close(orders[0::2].flip(1), orders[1::2])
