"""The statistics of the benchmark of presence, on numbers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.presence import WORDS, auroc, logistic, reliability, scored, shown
from xattn.toyland.scenes import scene


def test_auroc_counts_the_pairs_in_order() -> None:
    assert auroc(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 1
    assert auroc(np.array([1.0, 3.0]), np.array([2.0, 0.0])) == 0.75
    assert auroc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5
    assert np.isnan(auroc(np.array([]), np.array([1.0])))


def test_scores_of_the_truth_are_perfect_and_of_noise_are_not() -> None:
    truth = np.array([[word in shown(scene(n)) for word in WORDS] for n in range(12)])
    perfect = scored(truth.astype(float), truth, WORDS)
    assert all(found == {"mean": 1, "low": 1, "high": 1} for found in perfect.values())
    noise = np.random.default_rng(0).random(truth.shape)
    found = scored(noise, truth, WORDS)["all"]
    assert 0.3 < found["low"] < found["mean"] < found["high"] < 0.7


def test_the_logistic_fit_finds_the_odds() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    odds = (2 * features[:, 0] - 1).sigmoid()
    truth = (torch.rand(4000, generator=generator, dtype=torch.float64) < odds).double()
    weights, bias = logistic(features, truth)
    assert weights[0] == pytest.approx(2, abs=0.25)
    assert weights[1] == pytest.approx(0, abs=0.15)
    assert bias == pytest.approx(-1, abs=0.2)
    bins = reliability(odds.numpy(), truth.numpy())
    assert all(abs(each["said"] - each["there"]) < 0.06 for each in bins)
