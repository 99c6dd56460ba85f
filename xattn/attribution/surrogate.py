"""A local linear surrogate of what words do (LIME, Ribeiro et al. 2016).

Words are left out at random; each such prompt weighs ``exp(-d^2 / width^2)``, d being its cosine
distance to the whole prompt. A linear model of the target is fitted by weighted least squares with
a ridge penalty, at first of all words, then of those with the largest coefficients alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.attribution import levels
from xattn.attribution.method import Asked, Found
from xattn.attribution.targets import Target


@dataclass(frozen=True)
class Surrogate:
    """Each word's score is its coefficient in a sparse linear model near the prompt.

    Attributes:
        samples: how many prompts with words left out are asked.
        width: of the kernel; the cosine distance of 0 to 1 at which the weight is 1 / e.
        penalty: of the squared coefficients, relative to the mean weight of a sample.
        sparse: the most words with a coefficient; all by default.
        seed: of the samples.
    """

    name: str = "surrogate"
    levels: tuple[float, ...] = levels.FEW
    along: bool = True
    samples: int = 64
    width: float = 0.25
    penalty: float = 0.01
    sparse: int | None = None
    seed: int = 0

    def rows(self, players: int) -> int:
        """Return a row for each sample."""
        return int(min(self.samples, 2**players))

    def find(self, ask: Asked, target: Target) -> Found:
        """Return the coefficients; the share of variance that they explain is in the facts."""
        present = perturbed(ask.players, self.rows(ask.players), self.seed)
        estimates = ask.estimates(present)
        values = target.values(estimates, ask.full).double()[:, None]
        cells = target.cells(estimates, ask.full).double()
        weights = nearness(present, self.width)
        scores = fitted(present, values, weights, self.penalty)[1:, 0]
        used = torch.ones_like(scores, dtype=torch.bool)
        if self.sparse is not None and self.sparse < ask.players:
            used[scores.abs().argsort(descending=True)[self.sparse :]] = False
        model = fitted(present & used, values, weights, self.penalty)
        maps = fitted(present & used, cells.flatten(1), weights, self.penalty)[1:]
        facts = {
            "fit": explained(present & used, values, weights, model),
            "penalty": self.penalty,
            "samples": len(present),
        }
        return Found(model[1:, 0] * used, maps.unflatten(1, cells.shape[1:]), facts=facts)


def perturbed(count: int, samples: int, seed: int) -> Tensor:
    """Return the whole prompt, then prompts with 1 to all words left out, bool (samples, words)."""
    generator = torch.Generator().manual_seed(seed)
    found = [(True,) * count]
    known = set(found)
    while len(found) < samples:
        gone = int(torch.randint(1, count + 1, (), generator=generator))
        order = torch.randperm(count, generator=generator)
        subset = tuple(bool(order[i] >= gone) for i in range(count))
        if subset not in known:
            known.add(subset)
            found.append(subset)
    return torch.tensor(found)


def nearness(present: Tensor, width: float) -> Tensor:
    """Return each sample's weight, by its cosine distance to the whole prompt, (samples,)."""
    share = present.double().mean(1)
    return torch.exp(-((1 - share.sqrt()) ** 2) / width**2)


def fitted(present: Tensor, values: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Return intercept and coefficients of a weighted ridge regression, (words + 1, targets).

    Args:
        present: bool (samples, words).
        values: (samples, targets).
        weights: (samples,).
        penalty: of the squared coefficients, times the sum of the weights; not of the intercept.
    """
    count = present.shape[1]
    design = torch.cat([torch.ones(len(present), 1), present.double()], dim=1).double()
    root = weights.sqrt()[:, None]
    ridge = (penalty * weights.sum()).sqrt() * torch.eye(count + 1, dtype=torch.float64)[1:]
    left = torch.cat([root * design, ridge])
    right = torch.cat([root * values, torch.zeros(count, values.shape[1], dtype=torch.float64)])
    found: Tensor = torch.linalg.lstsq(left, right).solution
    return found


def explained(present: Tensor, values: Tensor, weights: Tensor, model: Tensor) -> float:
    """Return the weighted share of variance that a model explains, at most 1."""
    said = model[:1] + present.double() @ model[1:]
    mean = (weights[:, None] * values).sum() / weights.sum()
    left = (weights[:, None] * (values - said) ** 2).sum()
    whole = (weights[:, None] * (values - mean) ** 2).sum()
    return float(1 - left / whole) if whole > 0 else 1.0
