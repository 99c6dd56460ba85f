"""Muon, all matrices of a shape at once, against torch's one matrix at a time."""

from __future__ import annotations

import pytest
import torch

from xattn.toyland.training.muon import Muon, orthogonalise


def test_it_moves_as_torchs_own() -> None:
    reference = getattr(torch.optim, "Muon", None)
    if reference is None:
        pytest.skip("this torch has no Muon to compare with")
    torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 8), (8, 24)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    batched = Muon(ours, lr=0.05, weight_decay=0.1)
    single = reference(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [matrix.detach().clone() for matrix in ours]
    for _ in range(5):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        batched.step()
        single.step()
    for left, right, before in zip(ours, theirs, start, strict=True):
        # both iterate in bfloat16, of eight bits
        assert (left - right).norm() < 0.03 * (left - before).norm()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3
