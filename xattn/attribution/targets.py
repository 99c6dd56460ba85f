"""Targets: the number that is explained, made of a clean estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.attribution.presence import Presence
from xattn.models.probing import decoded_pictures


class Target(Protocol):
    """The protocol of what is explained.

    Attributes:
        name: what it is, in words.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def values(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return the number of each row, (rows,).

        Args:
            estimates: clean estimates, (rows, states, channels, height, width).
            full: the whole prompt's, (states, channels, height, width).
        """

    def cells(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return the number of each cell of the latent grid, (rows, height, width)."""


class Change:
    """The negative squared change of the clean estimate: of the image, or of a region.

    The mean over channels, states, and the region's cells. 0 for the whole prompt.

    Args:
        mask: (height, width) of any size, where the change counts; everywhere by default.

    Raises:
        ValueError: the mask is not (height, width), or is empty.
    """

    def __init__(self, mask: Any = None) -> None:
        self.mask = None if mask is None else np.asarray(mask, dtype=np.float32)
        if self.mask is not None and (self.mask.ndim != 2 or not self.mask.any()):
            raise ValueError(
                f"target: a mask is (height, width) with a place in it, got {self.mask.shape}"
            )
        self.name = "the image" if mask is None else "a region of the image"

    def values(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return minus the mean squared change over the region, (rows,)."""
        cells = -squared(estimates, full).mean(1)  # (rows, height, width)
        weights = self.weights(cells)
        return (cells * weights).sum((-2, -1)) / weights.sum()

    def cells(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return minus the mean squared change of each cell, 0 outside the region."""
        cells = -squared(estimates, full).mean(1)
        return cells * (self.weights(cells) > 0)

    def weights(self, cells: Tensor) -> Tensor:
        """Return each cell's weight on the grid of some cells, (height, width), at most 1."""
        if self.mask is None:
            return torch.ones_like(cells[0])
        mask = torch.from_numpy(self.mask)[None, None]
        return F.interpolate(mask, size=cells.shape[-2:], mode="area")[0, 0].to(cells)


class Function:
    """A function of the clean estimate, the mean over the states.

    Args:
        function: from pictures (rows, 3, height, width) in [0, 1] to numbers (rows,).
        pipe: the pipeline whose autoencoder decodes them.
        name: what the number is.
        decodes: whether estimates are latents; else they are pictures already.
    """

    def __init__(
        self, function: Callable[[Tensor], Any], pipe: Any, name: str = "", *, decodes: bool = True
    ) -> None:
        self.function, self.pipe, self.decodes = function, pipe, decodes
        self.name = name or getattr(function, "__name__", "a function of the image")

    def values(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return the function's value of each row, (rows,).

        Raises:
            ValueError: it does not give a number for each picture.
        """
        found = [self._asked(state) for state in estimates.unbind(1)]
        return torch.stack(found).mean(0)

    def cells(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return minus the mean squared change of each cell: a function has no places."""
        return -squared(estimates, full).mean(1)

    def _asked(self, latents: Tensor) -> Tensor:
        rows = []
        for some in latents.split(16):
            pictures = some
            if self.decodes:
                pictures = decoded_pictures(self.pipe, some.to(self.pipe.vae.device))
            given = torch.as_tensor(self.function(pictures)).float().cpu()
            if given.shape != (len(some),):
                raise ValueError(
                    f"target: the function must give a number for each of {len(some)} pictures, "
                    f"it gave the shape {tuple(given.shape)}"
                )
            rows.append(given)
        return torch.cat(rows)


def squared(estimates: Tensor, full: Tensor) -> Tensor:
    """Return the squared change, the mean over channels, (rows, states, height, width)."""
    return ((estimates - full.to(estimates)) ** 2).mean(2)


def target_of(given: Any, pipe: Any, *, decodes: bool = True) -> Target:
    """Return the target that is asked for.

    Args:
        given: "image", a concept, a mask (height, width), or a function of pictures.
        pipe: the pipeline.
        decodes: whether estimates are latents; else they are pictures already.

    Raises:
        TypeError: the presence of a concept can't be asked of this model.
        ValueError: it is none of them.
    """
    if isinstance(given, str):
        return Change() if given == "image" else Presence(given, pipe, decodes=decodes)
    return Function(given, pipe, decodes=decodes) if callable(given) else Change(given)
