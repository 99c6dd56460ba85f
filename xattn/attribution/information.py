"""Information: what a word tells about the picture, in nats (Kong et al. 2024).

The pointwise conditional information of a word y about a picture x, given the other words c, is

    i(x; y | c) = 1/2 * integral of E_e |e(x_a | c) - e(x_a | c, y)|^2  d a,

``a`` being the logarithm of the signal-to-noise ratio and ``e(x_a | ...)`` the predicted noise of
the picture at that ratio (Kong et al. 2024, section 2.2, the estimator by orthogonality). It is
nowhere negative, and a sum over the latents: so is each cell's share. The integral is taken by the
trapezoidal rule over the levels; what lies beyond them is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from xattn.attribution import levels
from xattn.attribution.asking import Asking
from xattn.attribution.method import Found
from xattn.attribution.states import States
from xattn.attribution.targets import Change, Target


@dataclass(frozen=True)
class Information:
    """Each word's score is its information in nats, its map each cell's share of it."""

    name: str = "information"
    levels: tuple[float, ...] = levels.WIDE
    along: bool = False

    def rows(self, players: int) -> int:
        """Return one row for each word, and one for the whole prompt."""
        return players + 1

    def find(self, ask: Asking, target: Target) -> Found:
        """Return each word's information about the picture, or about a region of it.

        Raises:
            ValueError: the target is a function, or there is a single level.
        """
        if not isinstance(target, Change):
            raise ValueError(
                "how='information' is about the picture itself: leave target= out, or give a mask"
            )
        estimates = ask.estimates(~torch.eye(ask.players, dtype=torch.bool))
        cells = information(estimates, ask.full, ask.states)
        scores = (cells * target.weights(cells)).sum((-2, -1))
        low, high = (math.log(f(ask.states.signal)) for f in (min, max))
        return Found(scores, cells, facts={"unit": "nats", "log_snr": (low, high)})


def information(estimates: Tensor, full: Tensor, states: States) -> Tensor:
    """Return the nats of each cell, (rows, height, width).

    A predicted noise is (x - s z) / n of the clean estimate z, so a difference of two is s / n
    times that of the estimates: squared, the signal-to-noise ratio.

    Args:
        estimates: clean estimates without a word, (rows, states, channels, height, width).
        full: the whole prompt's, (states, channels, height, width).
        states: their levels.
    """
    apart = ((estimates - full.to(estimates)) ** 2).sum(2)  # (rows, states, height, width)
    spans = trapezoid(states.signal)
    weights = torch.tensor([w * s for w, s in zip(spans, states.signal, strict=True)])
    return 0.5 * torch.einsum("rshw,s->rhw", apart, weights.to(apart))


def trapezoid(signal: tuple[float, ...]) -> list[float]:
    """Return the weight of each state in the integral over the logarithm of the signal.

    States of one level share its weight.

    Raises:
        ValueError: there are fewer than two levels.
    """
    logs = [math.log(each) for each in signal]
    places = sorted(set(logs))
    if len(places) < 2:
        raise ValueError("how='information' is an integral: give levels= two or more")
    edges = [
        places[0],
        *((a + b) / 2 for a, b in pairwise(places)),
        places[-1],
    ]
    spans = {place: edges[i + 1] - edges[i] for i, place in enumerate(places)}
    return [spans[log] / logs.count(log) for log in logs]
