"""Bind: an attribute that should belong to its noun and to nothing else (SynGen)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from xattn.guidance.goal import Goal, ImageMaps, check_word
from xattn.text.pairs import phrases
from xattn.text.prompt import Words


def divergences(maps: Tensor) -> Tensor:
    """Return the symmetric Kullback-Leibler divergences of maps, each divided by its sum.

    Half of KL(p | q) + KL(q | p), in nats (Rassin et al. 2023, section 3.2, and the authors'
    ``compute_loss.py``).

    Args:
        maps: (words, height, width).

    Returns:
        (words, words), symmetric, zeros on its diagonal.
    """
    flat = maps.flatten(1)
    shares = flat / flat.sum(1, keepdim=True).clamp_min(1e-12)
    logs = shares.clamp_min(1e-12).log()
    own, cross = (shares * logs).sum(1), shares @ logs.T
    return 0.5 * (own[:, None] + own - cross - cross.T)


@dataclass(frozen=True)
class Bind(Goal):
    """Make an attribute act where its noun acts, and away from the prompt's other words.

    The loss of SynGen (Rassin et al. 2023, section 3.2): the divergence of attribute and
    noun, less the mean divergence of the two from the other words u,
    D(a, n) - 1 / (2 |U|) sum over u of (D(a, u) + D(u, n)). It is negative where they are apart.

    Attributes:
        attribute: the word for the colour, material ..., as text or token positions.
        noun: the word that it belongs to; of one that stands twice, the one after the attribute.
        others: the words to keep away from; by default all of the prompt but the noun's other
            adjectives, which a rule for English finds.
        weight: the factor of its loss; a tenth, because divergences are larger than what words
            are short of.
        near: it is met where the two are nearer to each other than to others by this many nats.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> with xattn.steer(pipe, xattn.Bind("pink", "fish")) as steering:
        ...     image = pipe("a pink fish and a blue house").images[0]
    """

    attribute: Words
    noun: Words
    weight: float = field(default=0.1, kw_only=True)
    others: tuple[Words, ...] | None = None
    near: float = 0.5

    every_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for word in (self.attribute, self.noun, *(self.others or ())):
            check_word("Bind", word)

    @property
    def words(self) -> tuple[Words, ...]:
        """The attribute and the noun."""
        return (self.attribute, self.noun, *(self.others or ()))

    def parts(self, maps: ImageMaps) -> tuple[Tensor, Tensor]:
        """Return D(a, n), and the mean divergence of both from the other words."""
        words: list[Words] = [self.attribute, self._noun(maps), *self._others(maps)]
        between = divergences(torch.stack([maps.of(word) for word in words]))
        far = between[:2, 2:]
        return between[0, 1], far.mean() if far.numel() else between.new_zeros(())

    def loss(self, maps: ImageMaps) -> Tensor:
        """Return the positive part less the negative part, in nats."""
        near, far = self.parts(maps)
        return near - far

    def met(self, loss: float, share: float) -> bool:
        """Return whether the pair is nearer to each other than to the rest, by ``near`` nats.

        The loss alone says so: it is at most -near.
        """
        return loss <= -self.near

    def _noun(self, maps: ImageMaps) -> tuple[int, ...]:
        """Return the noun's positions; of one that stands twice, where the attribute is."""
        noun = maps.prompt.positions(self.noun)
        attribute = set(maps.prompt.positions(self.attribute))
        own = [
            phrase.noun.positions
            for phrase in phrases(maps.prompt)
            if set(noun).issuperset(phrase.noun.positions)
            and any(attribute.issuperset(pair.adjective.positions) for pair in phrase.adjectives)
        ]
        return tuple(place for each in own for place in each) or noun

    def _others(self, maps: ImageMaps) -> list[Words]:
        if self.others is not None:
            return list(self.others)
        own = {*maps.prompt.positions(self.attribute), *self._noun(maps)}
        for phrase in phrases(maps.prompt):
            if own.intersection(phrase.noun.positions):  # its other adjectives belong there too
                own.update(*(pair.adjective.positions for pair in phrase.adjectives))
        known = set(maps.positions)
        return [
            word.positions
            for word in maps.prompt.words
            if not own.intersection(word.positions) and known.issuperset(word.positions)
        ]

    def __str__(self) -> str:
        return f"Bind({self.attribute!r}, {self.noun!r})"
