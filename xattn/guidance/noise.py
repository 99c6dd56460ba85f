"""Initial noise that meets goals before the first step (InitNO)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xattn.guidance.backward import apart, arguments_on, pass_until
from xattn.guidance.goal import Goal
from xattn.guidance.latents import channels_of, input_scale, moved
from xattn.guidance.steering import Steering
from xattn.models.family import DenoiserCall
from xattn.session.sampling import Sampling


class NoiseFound(Exception):  # noqa: N818  (not an error: it ends a run that has done its part)
    """The search is over, and nothing is to be drawn."""


class NoiseSearch(Steering):
    """Search the initial noise in the neighbourhood of the one given.

    The noise is mean + std · given, and mean and std descend the goals' losses plus
    ``kl`` · KL(N(mean, std²) | N(0, 1)), which keeps it noise (Guo et al. 2024, "InitNO",
    whose cross-attention score is ``Present``'s loss with ``method="excite"``; its self-attention
    score is left out, and its authors' code holds the divergence below 0.001 by steps of its own).
    Before that, each image takes the noise of several from which its losses are least.

    Attributes:
        noise: what was found, (images, ...) float32, with a standard deviation near 1.
        tries: noises to choose from, the one given among them.
        seed: of the other noises.
        rounds: gradient steps at most.
        rate: Adam's learning rate.
        kl: the weight of the divergence, of the mean over the latents.
    """

    def __init__(
        self, goals: Sequence[Goal], *, tries: int, seed: int, rounds: int, rate: float, kl: float
    ) -> None:
        super().__init__(goals, rounds=max(1, rounds))
        self.tries = tries
        self.seed = seed
        self.rounds = rounds
        self.rate = rate
        self.kl = kl
        self.noise: Tensor | None = None

    def at_most(self, steps: int = 1) -> int:
        """Return the largest possible number of gradient steps."""
        return self.rounds

    def steer(
        self, sampling: Sampling, call: DenoiserCall, arguments: Mapping[str, Any]
    ) -> Tensor | None:
        """Search the noise at the first call, and end the run.

        Raises:
            MemoryError: before the first gradient step, if it would not fit.
            NoiseFound: always, with ``noise`` set.
        """
        if call.component:
            return None
        rows, channels = call.conditional[0], channels_of(sampling, call.sample)
        sigma = float(getattr(sampling.scheduler, "init_noise_sigma", 1.0))
        scale = input_scale(sampling.scheduler, call.timestep) * sigma
        start = call.sample[rows].detach().clone()
        whole = start[:, :channels] if start.ndim == 4 else start[..., :channels]
        given = whole.float() / scale
        own = frozenset(id(handler) for handler in self.collected.layers.values())
        with apart(sampling.denoiser, own):
            chosen = self._chosen(sampling, call, arguments, start, given, scale)
            start, given = moved(start, chosen - given, scale, channels), chosen
            self.noise = self._searched(sampling, call, arguments, start, given, scale)
        raise NoiseFound

    def _chosen(
        self,
        sampling: Sampling,
        call: DenoiserCall,
        arguments: Mapping[str, Any],
        start: Tensor,
        given: Tensor,
        scale: float,
    ) -> Tensor:
        """Return for each image the noise of several from which its losses are least."""
        random = torch.Generator().manual_seed(self.seed)
        rows, channels = call.conditional[0], channels_of(sampling, call.sample)
        handlers = [self.collected.layers[layer] for layer in self.judged_layers]
        best, least = given, torch.full((len(given),), torch.inf)
        for number in range(self.tries if self.tries > 1 else 0):
            noise = given if number == 0 else torch.randn(given.shape, generator=random).to(given)
            sample = moved(start, noise - given, scale, channels)
            with torch.no_grad():
                self.collected.aim(self.judged_layers, slice(0, len(sample)))
                passed = arguments_on(arguments, call, rows, sample)
                pass_until(sampling.denoiser, handlers, passed)
                found = self.totals()
            self.checks += 1
            better = (found < least).to(given.device)
            best = torch.where(better.view(-1, *[1] * (given.ndim - 1)), noise, best)
            least = torch.minimum(found, least)
        return best

    def totals(self) -> Tensor:
        """Return each image's weighted sum of losses, by the maps of the latest pass."""
        rows = self._judged(self.goals, 0.0)
        each = [
            [
                goal.weight * goal.step_size * float(loss)
                for goal, loss in zip(self.goals, row, strict=True)
                if loss is not None
            ]
            for row in rows
        ]
        return torch.tensor([sum(losses) for losses in each])

    def _searched(
        self,
        sampling: Sampling,
        call: DenoiserCall,
        arguments: Mapping[str, Any],
        start: Tensor,
        given: Tensor,
        scale: float,
    ) -> Tensor:
        mean = torch.zeros_like(given).requires_grad_()
        log_std = torch.zeros_like(given).requires_grad_()
        optimizer = torch.optim.Adam([mean, log_std], lr=self.rate)
        rows, channels = call.conditional[0], channels_of(sampling, call.sample)
        handlers = [self.collected.layers[layer] for layer in self.judged_layers]
        for number in range(self.rounds + 1 if self.rounds else 0):
            noise = mean + log_std.exp() * given
            shift = (noise - given).detach()
            sample = moved(start, shift, scale, channels).requires_grad_()
            passed = arguments_on(arguments, call, rows, sample)
            if number == 0:
                self.check_room(sampling, passed, sample)
            self.collected.aim(self.judged_layers, slice(0, len(sample)))
            pass_until(sampling.denoiser, handlers, passed)
            total = self.unmet(self.goals, [None] * len(self.goals), 0.0, 0)
            if total is None or number == self.rounds:
                break
            (slope,) = torch.autograd.grad(total, sample)
            part = slope[:, :channels] if slope.ndim == 4 else slope[..., :channels]
            optimizer.zero_grad()
            (noise * (part.float() * scale)).sum().backward()
            (self.kl * divergence(mean, log_std)).backward()
            optimizer.step()
            self.gradient_steps += 1
        return (mean + log_std.exp() * given).detach()


def divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, std²) | N(0, 1)), the mean over the entries, in nats."""
    return 0.5 * ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).mean()
