"""The surrogate finds a linear model where there is one."""

from __future__ import annotations

import pytest
import torch

from xattn.attribution import surrogate


def test_a_linear_effect_is_found_as_it_is() -> None:
    present = surrogate.perturbed(4, 16, seed=0)
    truth = torch.tensor([0.5, -1.0, 0.0, 2.0]).double()
    values = (3 + present.double() @ truth)[:, None]
    weights = surrogate.nearness(present, 0.25)
    model = surrogate.fitted(present, values, weights, penalty=0.0)
    assert model[:, 0].tolist() == pytest.approx([3, *truth.tolist()], abs=1e-9)
    assert surrogate.explained(present, values, weights, model) == pytest.approx(1.0)


def test_a_penalty_shrinks_the_coefficients_and_not_the_intercept() -> None:
    present = surrogate.perturbed(3, 8, seed=0)
    values = present.double().sum(1, keepdim=True) + 10
    weights = surrogate.nearness(present, 0.25)
    soft = surrogate.fitted(present, values, weights, penalty=0.5)[:, 0]
    assert (soft[1:] < 0.9).all()
    assert (soft[1:] > 0).all()
    assert float(soft[0]) > 10


def test_samples_differ_and_the_whole_prompt_weighs_most() -> None:
    present = surrogate.perturbed(5, 20, seed=3)
    assert len({tuple(row) for row in present.tolist()}) == 20
    assert present[0].all()
    weights = surrogate.nearness(present, 0.25)
    assert float(weights[0]) == 1.0
    assert (weights[1:] < 1).all()
