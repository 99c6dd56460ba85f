"""Shapley values: a word's mean worth over all orders in which words can come (Shapley 1953).

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S with i) - v(S))

The only division of v(all) - v(none) among the words that is linear in v, treats equals equally,
and gives nothing to a word that changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.attribution import levels
from xattn.attribution.method import Asked, Found
from xattn.attribution.targets import Target


@dataclass(frozen=True)
class Shapley:
    """Shapley values, exact for few words, else by sampled orders with intervals.

    Attributes:
        exact: the most words for which all subsets are asked.
        orders: how many orders are sampled for more words, each with its reverse.
        seed: of the orders.
    """

    name: str = "shapley"
    levels: tuple[float, ...] = levels.FEW
    along: bool = True
    exact: int = 8
    orders: int = 24
    seed: int = 0

    def rows(self, players: int) -> int:
        """Return all subsets, or at most those along the sampled orders."""
        return 2**players if players <= self.exact else 2 + self.orders * (players - 1)

    def find(self, ask: Asked, target: Target) -> Found:
        """Return each word's Shapley value of the target, and of each cell's."""
        count = ask.players
        if count <= self.exact:
            present = subsets(count)
            values, cells = _values(ask, target, present)
            return Found(exact(values), exact(cells), facts={"subsets": len(present)})
        orders = sampled(count, self.orders, self.seed)
        present = along(orders)  # (orders, words + 1, words)
        values, cells = _values(ask, target, present.flatten(0, 1))
        gains = gained(orders, values.unflatten(0, present.shape[:2]))  # (orders, words)
        maps = gained(orders, cells.unflatten(0, present.shape[:2])).mean(0)
        mean, half = interval(gains)
        limits = torch.stack([mean - half, mean + half], dim=1)
        return Found(mean, maps, limits, {"orders": len(orders)})


def _values(ask: Asked, target: Target, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target of each subset in float64, and of each of its cells."""
    values, cells = [], []
    _ = ask.estimates(present[:1])
    for some in present.split(256):
        estimates = ask.estimates(some)
        values.append(target.values(estimates, ask.full).double())
        cells.append(target.cells(estimates, ask.full).double())
    return torch.cat(values), torch.cat(cells)


def subsets(count: int) -> Tensor:
    """Return all subsets of some words, bool (2 ** count, count): row n has the bits of n."""
    return (torch.arange(2**count)[:, None] >> torch.arange(count)) % 2 == 1


def exact(values: Tensor) -> Tensor:
    """Return Shapley values, (words, ...), of a value for each row of ``subsets``."""
    count = int(math.log2(len(values)))
    present = subsets(count)
    sizes, found = present.sum(1), []
    for word in range(count):
        without = (~present[:, word]).nonzero()[:, 0]
        weights = torch.tensor(
            [_weight(int(size), count) for size in sizes[without]], dtype=torch.float64
        )
        gains = values[without + 2**word] - values[without]
        found.append(torch.tensordot(weights.to(values), gains, dims=1))
    return torch.stack(found)


def _weight(size: int, count: int) -> float:
    return math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)


# -- sampled orders


def sampled(count: int, orders: int, seed: int) -> Tensor:
    """Return random orders of the words, (orders, words), each followed by its reverse."""
    generator = torch.Generator().manual_seed(seed)
    half = [torch.randperm(count, generator=generator) for _ in range(max(1, orders // 2))]
    return torch.stack([each for order in half for each in (order, order.flip(0))])


def along(orders: Tensor) -> Tensor:
    """Return the growing subsets of each order, bool (orders, words + 1, words)."""
    count = orders.shape[1]
    place = orders.argsort(1)  # (orders, words): when each word comes
    return place[:, None, :] < torch.arange(count + 1)[None, :, None]


def gained(orders: Tensor, values: Tensor) -> Tensor:
    """Return what each word adds in each order, (orders, words, ...).

    Args:
        orders: (orders, words).
        values: of each growing subset, (orders, words + 1, ...).
    """
    steps = values[:, 1:] - values[:, :-1]  # (orders, words, ...), in the order's own sequence
    place = orders.argsort(1)
    return torch.stack([step[at] for step, at in zip(steps, place, strict=True)])


def interval(gains: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean gain of each word, and half its 95 % interval: orders come in pairs."""
    pairs = gains.unflatten(0, (-1, 2)).mean(1)  # (pairs, words)
    if len(pairs) < 2:
        return pairs.mean(0), torch.full_like(pairs[0], math.inf)
    return pairs.mean(0), 1.96 * pairs.std(0) / math.sqrt(len(pairs))
