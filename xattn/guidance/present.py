"""Present: words that should have a place in the image, each its own (Attend-and-Excite)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from xattn.guidance.goal import (
    Goal,
    ImageMaps,
    check_number,
    check_word,
    distribution,
    occurrences,
    smoothed,
)
from xattn.text.pairs import phrases
from xattn.text.prompt import Words

Method = Literal["joint", "share", "excite"]
_LATE = 0.1  # nats that each word may be short of its level, of "joint"


@dataclass(frozen=True, init=False)
class Present(Goal):
    """Make words act somewhere, none of them much less than another.

    With ``method="joint"`` no noun may act much less than another. How much it acts is the mean
    over cells of its map times that of the adjective next to it, or times itself where it has
    none: what ``trace.diagnose()`` finds ``Neglected`` by. The loss is how many nats each is short
    of ``level`` times the strongest, summed; a noun that stands twice counts twice.

    With ``method="share"`` words compete: D are their maps divided by their sums, and a word's
    share is the sum over cells of D_word · D_word / (the sum of all words' D): 1 where it meets no
    other, 1/n where n words act alike. The loss is the sum of 1 - share. Unlike
    peaks after a softmax it doesn't depend on how large a model's probabilities are.

    With ``method="excite"`` it is Attend-and-Excite (Chefer et al. 2023, section 3): the loss is
    1 - max(G * A), of several words the largest; A is the word's map after a softmax over the
    tokens without the start token's, G a Gaussian. At the shares of the run in ``thresholds`` the
    latents are refined (algorithm 1): up to ``refinements`` gradient steps, until the peak reaches
    the threshold. As in the paper: ``Present("mug", method="excite", steps=0.5)`` inside
    ``steer(..., move=None)``.

    Args:
        *subjects: the words, each as text or token positions. One alone competes with the other
            nouns of its prompt, which are found by a rule for English.
        method: "joint", "share" or "excite".
        level: of "joint": it is met where each acts nearly this much, as a share of the strongest.
        own: of "share": it is met where the words' shares are at least this, on average.
        thresholds: of "excite": share of the run -> the peak to reach there; the last is when it
            is met.
        refinements: of "excite": gradient steps at most for each threshold.
        sharpness: of "excite": the factor before the softmax; 100 in the authors' code.
        sigma: of "excite": the Gaussian's, in cells; 0 for none.
        weight: the factor of its loss.
        steps: the share of the run in which it is steered to.
        step_size: the latents move by step_size x gradient where ``move=None``.
        prompt: the text of the prompt whose images it acts on.

    Raises:
        ValueError: a value is out of range, or there is no word.

    Example:
        >>> with xattn.steer(pipe, xattn.Present("cat", "mug")) as steering:
        ...     image = pipe("a cat and a mug").images[0]
    """

    subjects: tuple[Words, ...] = ()
    method: Method = "joint"
    level: float = 0.5
    own: float = 0.6
    thresholds: dict[float, float] = field(default_factory=dict)
    refinements: int = 20
    sharpness: float = 100.0
    sigma: float = 0.5

    every_token: ClassVar[bool] = True

    def __init__(
        self,
        *subjects: Words,
        method: Method = "joint",
        level: float = 0.5,
        own: float = 0.6,
        thresholds: dict[float, float] | None = None,
        refinements: int = 20,
        sharpness: float = 100.0,
        sigma: float = 0.5,
        weight: float = 1.0,
        steps: float = 0.4,
        step_size: float = 20.0,
        prompt: str | None = None,
    ) -> None:
        known = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8} if thresholds is None else dict(thresholds)
        values = {
            "subjects": subjects, "method": method, "level": level, "own": own, "thresholds": known,
            "refinements": refinements, "sharpness": sharpness, "sigma": sigma,
            "weight": weight, "steps": steps, "step_size": step_size,
            "prompt": prompt,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        self._check()

    def _check(self) -> None:
        if not self.subjects:
            raise ValueError("Present needs a word of the prompt: Present('mug')")
        for word in self.subjects:
            check_word("Present", word)
        check_number("Present", "own", self.own, 0.0, 1.0)
        check_number("Present", "level", self.level, 0.0, 1.0)
        if self.method not in ("joint", "share", "excite"):
            raise ValueError(
                f"Present: method={self.method!r} must be 'joint', 'share' or 'excite'"
            )
        shares = [*self.thresholds, *self.thresholds.values()]
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"Present: thresholds={self.thresholds!r} must map shares of the run to peaks, "
                "all in [0, 1], like {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}"
            )
        times = self.refinements
        if isinstance(times, bool) or not isinstance(times, int) or times < 0:
            raise ValueError(f"Present: refinements={times!r} must be a whole number")

    @property
    def words(self) -> tuple[Words, ...]:
        """The words that should be there."""
        return self.subjects

    def loss(self, maps: ImageMaps) -> Tensor:
        """Return what the words are short of, in the chosen method's terms."""
        if self.method == "joint":
            acts = self.acts(maps).clamp_min(1e-30).log()
            least = acts.max().detach() + math.log(max(self.level, 1e-12))
            return (least - acts).clamp_min(0).sum()
        if self.method == "share":
            return (1 - self.shares(maps)).sum()
        sharp = (self.sharpness * maps.maps).softmax(0)  # over tokens
        shown = ImageMaps(maps.prompt, maps.positions, sharp, maps.share)
        losses = [1 - smoothed(shown.of(word), self.sigma).max() for word in self.subjects]
        worst: Tensor = max(losses)
        return worst

    def acts(self, maps: ImageMaps) -> Tensor:
        """Return how much each noun acts where its adjective acts, one for each occurrence."""
        nouns = [place for word in (*self.subjects, *self._rivals(maps)) for place in
                 occurrences(maps, word)]  # fmt: skip
        each = [maps.of(noun) * maps.of(near or noun) for noun, near in nouns]
        return torch.stack(each).flatten(1).mean(1)

    def shares(self, maps: ImageMaps) -> Tensor:
        """Return each word's share of the places where it acts, in [0, 1]."""
        everything = [*self.subjects, *self._rivals(maps)]
        each = torch.stack([distribution(maps.of(word)) for word in everything])
        own = each.square() / each.sum(0).clamp_min(1e-12)
        return own.flatten(1).sum(1)[: len(self.subjects)]

    def _rivals(self, maps: ImageMaps) -> list[Words]:
        if len(self.subjects) > 1:
            return []
        own, known = set(maps.prompt.positions(self.subjects[0])), set(maps.positions)
        nouns = [phrase.noun.positions for phrase in phrases(maps.prompt)]
        return [noun for noun in nouns if known.issuperset(noun) and own.isdisjoint(noun)]

    def met(self, loss: float, share: float) -> bool:
        """Return whether nouns act enough, shares reach ``own``, or peaks the last threshold."""
        if self.method == "joint":
            return loss <= _LATE * len(self.subjects)
        if self.method == "share":
            return loss <= len(self.subjects) * (1 - self.own)
        return loss <= 1 - self.thresholds[max(self.thresholds)]

    def refines(self, share: float, before: float) -> float | None:
        """Return the loss of the threshold that this step is the first to pass, or None."""
        if self.method != "excite":
            return None
        passed = [at for at in self.thresholds if before < at <= share + 1e-9]
        return 1 - self.thresholds[max(passed)] if passed else None

    @property
    def most_refinements(self) -> tuple[int, int]:
        """How often it refines at most, and by how many gradient steps each time."""
        if self.method != "excite":
            return 0, 0
        return len([at for at in self.thresholds if at < self.steps]), self.refinements
