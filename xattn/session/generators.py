"""Randomness for siblings: each row of a batch draws the noise its image would draw alone.

A pipeline called with a list of generators draws each row of its batch from its own. Siblings get
clones of their source's generator: the same noise at the start, and again at every step of a
stochastic scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex, overload

import torch

Given = torch.Generator | Sequence[torch.Generator] | None


class RowGenerators(list[torch.Generator]):
    """One generator per row, prompt-major: all images of the source, then of each sibling.

    Args:
        given: one generator, or one per image.
        images: number of images per prompt.
        prompts: number of prompts, source and siblings.

    One generator for several images: each draw is divided among the images in order, as in a plain
    run. The images equal those of the plain run on the CPU if an image's latents are a multiple of
    16 numbers; CUDA's generators fill a batch in another order.
    """

    def __init__(
        self, given: torch.Generator | Sequence[torch.Generator], images: int, prompts: int
    ) -> None:
        self.given = [given] if isinstance(given, torch.Generator) else list(given)
        self.images = images
        self.chained = len(self.given) == 1 and images > 1
        originals = self.given * images if self.chained else self.given
        super().__init__(_clone(g) for _ in range(prompts) for g in originals)
        self._before = [g.get_state() for g in originals]

    @overload
    def __getitem__(self, row: SupportsIndex, /) -> torch.Generator: ...
    @overload
    def __getitem__(self, row: slice, /) -> list[torch.Generator]: ...
    def __getitem__(self, row: SupportsIndex | slice, /) -> torch.Generator | list[torch.Generator]:
        """Return a row's generator, just before it draws; rows must be requested in order."""
        found = super().__getitem__(row)
        if not self.chained or isinstance(found, list):
            return found
        prompt, image = divmod(int(row), self.images)  # type: ignore[arg-type]
        if prompt == 0:
            # an image draws where the previous one stopped, the first where the last did
            previous = super().__getitem__(image - 1 if image else self.images - 1)
            self._before[image] = previous.get_state()
        found.set_state(self._before[image])
        return found

    def twins(self) -> list[torch.Generator]:
        """Return clones of the given generators, in their current state."""
        return [_clone(generator) for generator in self.given]

    def leave(self) -> None:
        """Set the given generators to the state a plain run would leave."""
        for i, generator in enumerate(self.given):
            last = self.images - 1 if self.chained else i
            generator.set_state(super().__getitem__(last).get_state())


def row_generators(given: Given, images: int, prompts: int, device: torch.device) -> RowGenerators:
    """Return the rows' generators; by default they start as torch's own of the device."""
    if given is None:
        given = _default(device)
    return RowGenerators(given, images, prompts)


def _clone(generator: torch.Generator) -> torch.Generator:
    twin = torch.Generator(device=generator.device)
    twin.set_state(generator.get_state())
    return twin


def _default(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
