"""Integrated gradients along the text embeddings (Sundararajan et al. 2017).

The path leads from the prompt with every word's embedding replaced to the prompt itself; a word's
score is the integral of the target's gradient along it, over its own embeddings. Scores sum to
what the target gains along the path. The integral is a Gauss-Legendre sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from xattn.attribution import levels
from xattn.attribution.asking import Asking
from xattn.attribution.method import Found
from xattn.attribution.store import digest
from xattn.attribution.targets import Target


@dataclass(frozen=True)
class Gradient:
    """Integrated gradients; a word's score is signed, and there is no map.

    Attributes:
        points: how many points of the path the gradient is taken at.
    """

    name: str = "gradient"
    levels: tuple[float, ...] = levels.FEW
    along: bool = True
    points: int = 12

    def rows(self, players: int) -> int:
        """Return a row for each point, counted thrice for its gradient, and one for each end."""
        return 3 * self.points + 2

    def find(self, ask: Asking, target: Target) -> Found:
        """Return each word's share, and how far the shares' sum is from the whole."""
        full, base = self._ends(ask)
        way = full - base
        total = torch.zeros_like(way)
        gained = self._value(ask, target, full) - self._value(ask, target, base)
        question = digest((self.name, self.points, target.name, gained))
        places, weights = (torch.from_numpy(each) / 2 for each in leggauss(self.points))
        with ask.progress(self.points) as advance:
            for some in torch.arange(self.points).split(ask.batch):
                at = (places[some] + 0.5).to(way)[:, None, None]
                name = f"{question}-{int(some[0])}-{len(some)}"
                slopes = self._slopes(ask, target, base + at * way, name)
                total += torch.einsum("p,ptc->tc", weights[some].to(way), slopes)
                advance(len(some))
        shares = (way * total).sum(-1)[0].cpu().double()  # (tokens,)
        scores = torch.stack([shares[list(p.positions)].sum() for p in ask.texts.players])
        return Found(
            scores, facts={"gained": float(gained), "missed": float(gained - scores.sum())}
        )

    def _ends(self, ask: Asking) -> tuple[Tensor, Tensor]:
        full = ask.texts.full[0].float()  # (1, tokens, channels)
        base = full.clone()
        places = [place for player in ask.texts.players for place in player.positions]
        base[:, places] = ask.texts.filling[places].float()
        return full, base

    @torch.no_grad()
    def _value(self, ask: Asking, target: Target, states: Tensor) -> Tensor:
        return _target_of(ask, target, states)[0].cpu().double()

    def _slopes(self, ask: Asking, target: Target, states: Tensor, name: str) -> Tensor:
        """Return the gradient at some points of the path, (points, tokens, channels).

        From the store where it is known there: of another target the path gains another value.
        """
        found = None if ask.store is None else ask.store.read(name)
        if found is not None:
            return found.to(states)
        slopes = self._gradient(ask, target, states)
        if ask.store is not None:
            ask.store.write(name, slopes.cpu())
        return slopes

    def _gradient(self, ask: Asking, target: Target, states: Tensor) -> Tensor:
        with torch.enable_grad():
            given = states.detach().requires_grad_()
            value = _target_of(ask, target, given).sum()
            return torch.autograd.grad(value, given)[0]


def _target_of(ask: Asking, target: Target, states: Tensor) -> Tensor:
    kind = ask.texts.full[0].dtype
    each = [ask.estimate_of(state, states.to(kind)) for state in range(len(ask.states))]
    return target.values(torch.stack(each, dim=1), ask.full.to(each[0].device))
