"""Weights of a model shuffled for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def shuffled_weights(model: nn.Module, share: float, seed: int = 0) -> Iterator[None]:
    """Shuffle the entries of a share of a model's parameters, the last defined first.

    Each tensor keeps its values, and so its scale, and loses what it learned (the cascading
    randomization of Adebayo et al. 2018). The copies to restore take as much memory as they do.

    Args:
        model: the model.
        share: how many of its parameters' tensors, from 0 to 1.
        seed: of the permutations.

    Raises:
        TypeError: weights wait elsewhere (an offloaded model).
    """
    every = list(model.parameters())
    if any(each.is_meta for each in every):
        raise TypeError("an offloaded model's weights can't be shuffled; load it without offload")
    chosen = every[len(every) - round(share * len(every)) :]
    before = [each.detach().clone() for each in chosen]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for each in chosen:
                order = torch.randperm(each.numel(), generator=generator).to(each.device)
                each.copy_(each.flatten()[order].view_as(each))
        yield
    finally:
        with torch.no_grad():
            for each, old in zip(chosen, before, strict=True):
                each.copy_(old)
