"""What the joint-attention model learns from: the bundled UNets' own predictions.

A sampled target is mostly noise: the same noisy latents may come from many pictures. The mean of
what they may come from is what a trained denoiser predicts (Hinton et al. 2015 for the idea;
Luhman & Luhman 2021 for diffusion models), and a student that is given it needs fewer examples.

Each lesson is taught with its caption and without it: what a caption changes is a small part of a
prediction, and all that guidance multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from xattn.toyland.bundle import Model, folder_of
from xattn.toyland.vocabulary import LENGTH

from .denoiser import build_scheduler

RELIABLE: Final = (0.03, 0.88)
"""Levels of noise at which a UNet is asked; beyond them its prediction of the clean latents is
its error of the noise many times over, or its schedule ends."""


class Teacher:
    """The UNet for easy scenes, the contextual one for hard ones; their weights stay as they are.

    `empty` are the ids of the empty caption, `(1, length)`; prompts are padded with `end`. Both
    predict the noise of variance-preserving latents; a rectified flow's latents are those,
    scaled, at the timestep of the same signal-to-noise ratio.
    """

    def __init__(self, device: str, empty: Tensor, end: int) -> None:
        self.empty, self.end = empty.to(device), end
        self.models = [load(name, device) for name in ("unet", "contextual")]
        kept: Tensor = build_scheduler().alphas_cumprod
        self.ratios = (kept / (1 - kept)).log().to(device)  # falling, by timestep

    def timesteps(self, levels: Tensor) -> Tensor:
        """Timesteps, between whole ones, whose ratio of signal to noise is a level's own."""
        wanted = 2 * ((1 - levels) / levels).log()
        above = torch.searchsorted(-self.ratios, -wanted).clamp(1, len(self.ratios) - 1)
        left, right = self.ratios[above - 1], self.ratios[above]
        return above - 1 + ((left - wanted) / (left - right)).clamp(0, 1)

    @torch.no_grad()
    def velocity(self, noisy: Tensor, levels: Tensor, ids: Tensor, hard: Tensor) -> Tensor:
        """Predict the velocity, of `noisy`'s shape, `(batch, 8, 16, 16)`."""
        share = levels[:, None, None, None]
        text = torch.nn.functional.pad(ids, (0, LENGTH - ids.shape[1]), value=self.end)
        scaled = noisy / ((1 - share).square() + share.square()).sqrt()
        steps, noise = self.timesteps(levels), torch.empty_like(noisy)
        for rows, (encoder, unet) in zip((~hard, hard), self.models, strict=True):
            if rows.any():
                states = encoder(text[rows])[0]
                noise[rows] = unet(scaled[rows], steps[rows], states).sample.to(noise.dtype)
        return (noise - noisy) / (1 - share)

    def correct(self, lesson: Lesson, hard: Tensor) -> Lesson:
        """Put predictions in the place of the sampled velocity where they are reliable."""
        sure = (lesson.levels > RELIABLE[0]) & (lesson.levels < RELIABLE[1])
        asked = lesson[sure]
        twice = torch.cat([asked.ids, self.empty.expand_as(asked.ids)])
        made = self.velocity(
            torch.cat([asked.noisy] * 2), torch.cat([asked.levels] * 2), twice, hard[sure].repeat(2)
        )
        target, unprompted = lesson.target.clone(), lesson.target.clone()
        target[sure], unprompted[sure] = made.chunk(2)
        return replace(lesson, target=target, unprompted=unprompted, taught=sure)


@dataclass(frozen=True)
class Lesson:
    """Noisy latents, their levels of noise, their captions' ids, and the velocity to predict.

    `unprompted` is the velocity to predict without the caption, and `taught` says of which rows
    both are a teacher's.
    """

    noisy: Tensor
    levels: Tensor
    ids: Tensor
    target: Tensor
    unprompted: Tensor
    taught: Tensor

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, rows: Tensor | slice) -> Lesson:
        return Lesson(*(part[rows] for part in self.parts()))

    def followed_by(self, other: Lesson) -> Lesson:
        """Return the rows of both."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return Lesson(*(torch.cat(pair) for pair in pairs))

    def parts(self) -> tuple[Tensor, ...]:
        """Return the six tensors, rows first."""
        return tuple(getattr(self, field.name) for field in fields(self))


class Lessons:
    """Lessons of the past, drawn a few times each: the teacher costs as much as the student.

    A lesson that is drawn more often is learned by heart.

    New ones are made at each turn until `least` are there, and then at every `reuse`-th turn; the
    oldest of more than `most` are forgotten.
    """

    def __init__(self, *, reuse: int = 3, least: int = 1024, most: int = 4096) -> None:
        self.reuse, self.least, self.most = reuse, least, most
        self.turn = self.made = 0
        self.kept: Lesson | None = None

    def __len__(self) -> int:
        return min(self.made, self.most)

    def draw(self, make: Callable[[], Lesson], count: int, random: torch.Generator) -> Lesson:
        """Draw lessons, of the new and the old ones alike; `make` makes new ones."""
        if self.kept is None or len(self) < self.least or self.turn % self.reuse == 0:
            self.kept = self._keep(make(), self.kept)
        self.turn += 1
        return self.kept[torch.randint(len(self), (count,), generator=random)]

    def _keep(self, new: Lesson, kept: Lesson | None) -> Lesson:
        """Write new lessons in the place of the oldest."""
        if kept is None:
            kept = Lesson(*(part.new_empty(self.most, *part.shape[1:]) for part in new.parts()))
        places = torch.arange(self.made, self.made + len(new)) % self.most
        for part, added in zip(kept.parts(), new.parts(), strict=True):
            part[places] = added
        self.made += len(new)
        return kept


def load(name: Model, device: str) -> tuple[Any, Any]:
    """Load a bundled model's text encoder and UNet in float32, frozen."""
    # the contextual model's folder has no autoencoder; its parts are read one by one
    folder = folder_of(name)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    parts = [part.float().to(device).eval().requires_grad_(False) for part in (encoder, unet)]
    return parts[0], parts[1]
