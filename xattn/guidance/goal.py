"""What every goal is: words, a loss on their maps, and when it is met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.text.pairs import phrases
from xattn.text.prompt import Prompt, Words


@dataclass(frozen=True)
class ImageMaps:
    """The maps of one image that goals are judged by, all on one grid.

    Attributes:
        prompt: the image's prompt.
        positions: the token positions of the maps.
        maps: (tokens, height, width), the mean of the probabilities over heads and layers.
        share: how much of the run is over, in [0, 1).
    """

    prompt: Prompt
    positions: tuple[int, ...]
    maps: Tensor
    share: float = 0.0

    def of(self, word: Words) -> Tensor:
        """Return a word's map, (height, width): the mean over its tokens.

        Raises:
            WordError: the word is not in the prompt.
        """
        places = self.prompt.positions(word)
        return self.maps[[self.positions.index(place) for place in places]].mean(0)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Something that the maps of an image should be like.

    Attributes:
        weight: the factor of its loss; 0 for a goal that is only measured.
        steps: the share of the run in which it is steered to, (0, 1].
        step_size: the latents move by step_size x the gradient of the loss where ``move=None``.
        prompt: the text of the prompt whose images it acts on; by default every prompt with its
            words.
    """

    weight: float = 1.0
    steps: float = 0.4
    step_size: float = 20.0
    prompt: str | None = None

    every_token: ClassVar[bool] = False
    """Whether the loss depends on the maps of the prompt's other tokens, too."""

    def __post_init__(self) -> None:
        kind = type(self).__name__
        check_number(kind, "weight", self.weight, 0.0, 1000.0)
        check_number(kind, "steps", self.steps, 0.0, 1.0)
        check_number(kind, "step_size", self.step_size, 0.0, 1000.0)

    @property
    def words(self) -> tuple[Words, ...]:
        """The words that it is about."""
        raise NotImplementedError

    def loss(self, maps: ImageMaps) -> Tensor:
        """Return what is to become small: a number with gradients, not negative unless said."""
        raise NotImplementedError

    def met(self, loss: float, share: float) -> bool:
        """Return whether a loss is good enough."""
        raise NotImplementedError

    def refines(self, share: float, before: float) -> float | None:
        """Return the loss to reach at once in this step, by several gradient steps, or None.

        Args:
            share: how much of the run is over.
            before: the share at the step before; negative at the first.
        """
        return None

    @property
    def most_refinements(self) -> tuple[int, int]:
        """How often it refines at most, and by how many gradient steps each time."""
        return 0, 0

    @property
    def title(self) -> str:
        """Its text, with its prompt where it has one: what its losses are known by."""
        return str(self) if self.prompt is None else f"{self} of {self.prompt!r}"

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(repr(word) for word in self.words)})"


def check_number(goal: str, name: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError if a value is not a number in a range."""
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{goal}: {name}={value!r} must be a number from {low:g} to {high:g}")


def check_word(goal: str, word: Words) -> None:
    """Raise ValueError if a word is neither text nor token positions."""
    if isinstance(word, str) and not word.strip():
        raise ValueError(f"{goal} needs a word of the prompt, got {word!r}")
    if not isinstance(word, str | int | tuple):
        raise ValueError(f"{goal} needs a word of the prompt, as text or positions, got {word!r}")


def distribution(heat: Tensor) -> Tensor:
    """Return a map (height, width) divided by its sum."""
    return heat / heat.sum().clamp_min(1e-12)


def occurrences(maps: ImageMaps, word: Words) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the token positions of a noun's occurrences, each with those of its adjective.

    The adjective is the one next to the noun; () where it has none. What isn't a noun of the
    prompt, by a rule for English, is one occurrence.
    """
    own, known = set(maps.prompt.positions(word)), set(maps.positions)
    found = []
    for phrase in phrases(maps.prompt):
        if own.issuperset(phrase.noun.positions):
            near = phrase.adjectives[-1].adjective.positions if phrase.adjectives else ()
            found.append((phrase.noun.positions, near if known.issuperset(near) else ()))
    return found or [(maps.prompt.positions(word), ())]


def on_one_grid(natives: Sequence[Tensor]) -> Tensor:
    """Return the mean of layers' maps (images, tokens, height, width), on their finest grid."""
    finest = max((each.shape[-2:] for each in natives), key=lambda grid: grid[0] * grid[1])
    sized = [
        each
        if each.shape[-2:] == finest
        else F.interpolate(each, size=finest, mode="bilinear", align_corners=False)
        for each in natives
    ]
    return torch.stack(sized).mean(0)


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (..., height, width) after a Gaussian of 3 x 3, mirrored at the edges."""
    if not sigma or min(maps.shape[-2:]) < 2:
        return maps
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2).to(maps)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    padded = F.pad(flat, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, kernel[None, None]).reshape(maps.shape)
