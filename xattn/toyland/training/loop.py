"""The training loop that all denoisers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers import CLIPTokenizer

from .muon import Muon
from .progress import Progress
from .team import ALONE, Team

CAPTION_DROPOUT = 0.1
SEEDS = 10_000_000  # of the steps of one training; another seed's begin behind them


@dataclass(frozen=True)
class Batch:
    """Clean latents `(batch, 8, 16, 16)`, their captions' token ids, and which scenes are hard."""

    clean: Tensor
    ids: Tensor
    hard: Tensor

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.clean[rows], self.ids[rows], self.hard[rows])

    def to(self, device: str) -> Batch:
        """Return the batch on a device."""
        return Batch(self.clean.to(device), self.ids.to(device), self.hard.to(device))


class Trainable(torch.nn.Module, ABC):
    """A denoiser with its text encoders, as one module: one optimiser and average hold both."""

    @abstractmethod
    def loss(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Return the loss of a batch, a scalar."""

    def matrices(self) -> list[torch.nn.Parameter]:
        """Return the weights that Muon trains, `(rows, columns)` each; AdamW trains the rest."""
        return []

    @abstractmethod
    def begin(self, device: str) -> None:
        """Install the attention to train with."""

    @abstractmethod
    def end(self) -> None:
        """Put the default attention back."""


@dataclass(frozen=True)
class Examples:
    """Encoded scenes: latents `(count, 8, 16, 16)`, token ids `(count, length)`, and kinds.

    `hard` is a truth value for each.
    """

    latents: Tensor
    ids: Tensor
    hard: Tensor
    empty: Tensor
    """Ids of the empty caption, `(1, length)`."""
    dropout: float = CAPTION_DROPOUT
    """The share of examples whose caption is empty, for guidance."""

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Draw examples, some with an empty caption."""
        chosen = torch.randint(len(self.latents), (count,), generator=random)
        dropped = torch.rand(count, 1, generator=random) < self.dropout
        ids = torch.where(dropped, self.empty, self.ids[chosen])
        return Batch(self.latents[chosen].float(), ids, self.hard[chosen])


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str], length: int) -> Tensor:
    """Token ids, `(captions, length)`."""
    ids: Tensor = tokenizer(
        list(captions),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids


@dataclass(frozen=True)
class Schedule:
    """How long to train, in which batches, and how fast.

    `batch` is the whole team's; `minutes` ends the training sooner, by the clock.
    """

    steps: int
    minutes: float | None = None
    batch: int = 32
    peak_rate: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.998
    """Of the moving average of the weights, for each step."""
    save_every: int = 250
    seed: int = 0
    """Of the order of the scenes and of the noise."""


def optimizers_of(model: Trainable, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Build AdamW, and Muon in a precision where the model has matrices for it."""
    matrices = model.matrices()
    apart = {id(matrix) for matrix in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in apart]
    # the rate is set at each step
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=0.0, dtype=dtype))
    return optimizers


class Learner:
    """A denoiser on a device with its optimisers and the moving average of its weights."""

    def __init__(self, model: Trainable, decay: float, device: str, autocast: bool) -> None:
        self.model, self.device, self.autocast = model, device, autocast
        model.to(device).train()
        model.begin(device)
        self.average = EMAModel(
            model.parameters(),
            decay=decay,
            min_decay=0.0,
            use_ema_warmup=False,
            foreach=True,
        )
        self.optimizers = optimizers_of(model, torch.bfloat16 if autocast else torch.float32)

    def step(self, batch: Batch, random: torch.Generator, rate: float, team: Team) -> float:
        """Learn from a batch at a rate, together with the team; return the loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = self.model.loss(batch.to(self.device), random)
        loss.backward()
        team.average_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.step(self.model.parameters())
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint needs."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.average.load_state_dict(state["average"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model draw with its averaged weights, then go on learning."""
        self.average.store(self.model.parameters())
        self.end()
        yield
        self.model.train()
        self.model.begin(self.device)
        self.average.restore(self.model.parameters())

    def end(self) -> None:
        """Leave the model with its averaged weights, ready to draw."""
        self.average.copy_to(self.model.parameters())
        self.model.end()
        self.model.eval()


def train(
    model: Trainable,
    name: str,
    examples: Examples,
    folder: Path,
    schedule: Schedule,
    *,
    device: str = "cpu",
    autocast: bool = True,
    look: Callable[[Trainable, int], None] | None = None,
    team: Team = ALONE,
) -> None:
    """Train a denoiser in place, and leave it with the moving average of its weights.

    Resumes from `folder`. `look` is called with the averaged model and the step each time that a
    checkpoint is written.
    """
    learner = Learner(model, schedule.decay, device, autocast)
    progress = Progress(folder, name, schedule.steps, schedule.minutes, team)
    state = progress.resume()
    if state is not None:
        learner.load(state)
    losses: list[float] = []
    while progress.share < 1:
        turn = progress.step * team.size + team.rank
        random = torch.Generator().manual_seed(schedule.seed * SEEDS + turn)
        batch = examples.draw(schedule.batch // team.size, random)
        rate = progress.rate(schedule.peak_rate, schedule.warmup)
        losses.append(learner.step(batch, random, rate, team))
        progress.advance()
        if progress.step % 25 == 0 or progress.share >= 1:
            progress.log(loss=fmean(losses), rate=rate)
            losses.clear()
        if progress.step % schedule.save_every == 0 or progress.share >= 1:
            progress.save(learner.state())
            if look is not None and team.leads:
                with learner.averaged():
                    look(model, progress.step)
    learner.end()
