"""Present: a word that should have a place in the image (Attend-and-Excite)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from xattn.guidance.goal import Goal, ImageMaps, check_word, smoothed
from xattn.text.prompt import Words


@dataclass(frozen=True, init=False)
class Present(Goal):
    """Make a word's attention strong in at least one place.

    The loss is 1 - max(G * A) of Attend-and-Excite (Chefer et al. 2023, equations 1 and 2, for
    several words the largest loss counts): A is the word's map after a softmax over the tokens
    without the start token's, G a Gaussian. At the shares of the run in ``thresholds`` the latents
    are refined (algorithm 1): up to ``refinements`` gradient steps, until the peak reaches the
    threshold.

    Args:
        *subjects: the words, each as text or token positions.
        thresholds: share of the run -> the peak to reach there; the last is when it is met.
        refinements: gradient steps at most for each threshold.
        sharpness: the factor before the softmax over tokens; 100 in the paper's code.
        sigma: of the Gaussian, in cells; 0 for none.
        weight: the factor of its loss.
        steps: the share of the run in which it is steered to.
        step_size: the latents move by step_size x gradient, less in later steps.

    Raises:
        ValueError: a value is out of range, or there is no word.

    Example:
        >>> with xattn.steer(pipe, xattn.Present("mug")) as steering:
        ...     image = pipe("a cat and a mug").images[0]
    """

    subjects: tuple[Words, ...] = ()
    thresholds: dict[float, float] = field(default_factory=dict)
    refinements: int = 20
    sharpness: float = 100.0
    sigma: float = 0.5

    every_token: ClassVar[bool] = True

    def __init__(
        self,
        *subjects: Words,
        thresholds: dict[float, float] | None = None,
        refinements: int = 20,
        sharpness: float = 100.0,
        sigma: float = 0.5,
        weight: float = 1.0,
        steps: float = 0.5,
        step_size: float = 20.0,
    ) -> None:
        known = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8} if thresholds is None else dict(thresholds)
        values = {
            "subjects": subjects, "thresholds": known, "refinements": refinements,
            "sharpness": sharpness, "sigma": sigma, "weight": weight, "steps": steps,
            "step_size": step_size,
        }  # fmt: skip
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()
        if not subjects:
            raise ValueError("Present needs a word of the prompt: Present('mug')")
        for word in subjects:
            check_word("Present", word)
        shares = [*known, *known.values()]
        if not known or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                f"Present: thresholds={thresholds!r} must map shares of the run to peaks, all in "
                "[0, 1], like {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}"
            )
        if isinstance(refinements, bool) or not isinstance(refinements, int) or refinements < 0:
            raise ValueError(f"Present: refinements={refinements!r} must be a whole number")

    @property
    def words(self) -> tuple[Words, ...]:
        """The words that should be there."""
        return self.subjects

    def loss(self, maps: ImageMaps) -> Tensor:
        """Return the largest of the words' 1 - max(G * A), in [0, 1]."""
        sharp = (self.sharpness * maps.maps).softmax(0)  # over tokens
        shown = ImageMaps(maps.prompt, maps.positions, sharp, maps.share)
        losses = [1 - smoothed(shown.of(word), self.sigma).max() for word in self.subjects]
        worst: Tensor = max(losses)
        return worst

    def met(self, loss: float, share: float) -> bool:
        """Return whether every word's peak reaches the last threshold."""
        return loss <= 1 - self.thresholds[max(self.thresholds)]

    def refines(self, share: float, before: float) -> float | None:
        """Return the loss of the threshold that this step is the first to pass, or None."""
        passed = [at for at in self.thresholds if before < at <= share + 1e-9]
        return 1 - self.thresholds[max(passed)] if passed else None

    @property
    def most_refinements(self) -> tuple[int, int]:
        """How often it refines at most, and by how many gradient steps each time."""
        return len([at for at in self.thresholds if at < self.steps]), self.refinements
