"""Apart: words that should not share a place (A-STAR's segregation loss)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from xattn.guidance.goal import Goal, ImageMaps, check_word, distribution
from xattn.text.prompt import Words


@dataclass(frozen=True, init=False)
class Apart(Goal):
    """Make words act in different places.

    The loss is the segregation loss of A-STAR (Agarwal et al. 2023, equation 2) on maps divided by
    their sums: for each pair of words, sum over cells of min(A, B) / (A + B summed), which is 0
    for maps that share nothing and 1/2 for equal ones; the sum over pairs.

    Args:
        *subjects: two words or more, each as text or token positions.
        overlap: it is met where no pair's loss is above this, in [0, 1/2].
        weight: the factor of its loss.
        steps: the share of the run in which it is steered to.
        step_size: the latents move by step_size x gradient where ``move=None``.
        prompt: the text of the prompt whose images it acts on.

    Raises:
        ValueError: a value is out of range, or there are fewer than two words.

    Example:
        >>> with xattn.steer(pipe, xattn.Apart("cat", "dog")) as steering:
        ...     image = pipe("a cat and a dog").images[0]
    """

    subjects: tuple[Words, ...] = ()
    overlap: float = 0.2

    def __init__(
        self,
        *subjects: Words,
        overlap: float = 0.2,
        weight: float = 1.0,
        steps: float = 0.4,
        step_size: float = 20.0,
        prompt: str | None = None,
    ) -> None:
        values = {
            "subjects": subjects, "overlap": overlap, "weight": weight, "steps": steps,
            "step_size": step_size, "prompt": prompt,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        if len(subjects) < 2:
            raise ValueError("Apart needs two words of the prompt or more: Apart('cat', 'dog')")
        for word in subjects:
            check_word("Apart", word)

    @property
    def words(self) -> tuple[Words, ...]:
        """The words to keep apart."""
        return self.subjects

    def loss(self, maps: ImageMaps) -> Tensor:
        """Return the pairs' overlaps, summed."""
        each = [distribution(maps.of(word)) for word in self.subjects]
        pairs = [torch.minimum(a, b).sum() / (a + b).sum() for a, b in combinations(each, 2)]
        return torch.stack(pairs).sum()

    def met(self, loss: float, share: float) -> bool:
        """Return whether the pairs overlap by no more than ``overlap``, on average."""
        count = len(self.subjects)
        return loss <= self.overlap * count * (count - 1) / 2
