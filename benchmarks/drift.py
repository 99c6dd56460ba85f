"""How far sets of pictures lie apart: a Fréchet distance of the judge's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import linalg

from benchmarks.judge import Judge, to_pixels

Array = npt.NDArray[np.float64]


class Features:
    """The judge's last features, each channel's mean over the picture: 64 numbers a picture."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @torch.no_grad()
    def of(self, images: Sequence[Image.Image]) -> Array:
        """Return the features of pictures, (count, 64)."""
        found = []
        for start in range(0, len(images), 32):
            first = self.judge.first(to_pixels(images[start : start + 32]))
            deep: torch.Tensor = self.judge.third(self.judge.second(first))
            found.append(deep.mean((2, 3)).double().numpy())
        return np.concatenate(found)

    @staticmethod
    def distance(one: Array, two: Array) -> float:
        """Return the Fréchet distance of normals fitted to two sets (Heusel et al. 2017).

        |m - n|² + tr(C + D - 2 (C D)^(1/2)), with means m, n and covariances C, D.
        """
        covariances: list[Any] = [np.cov(each, rowvar=False) for each in (one, two)]
        root = linalg.sqrtm(covariances[0] @ covariances[1])
        spread = np.trace(covariances[0] + covariances[1] - 2 * root.real)
        return float(np.square(one.mean(0) - two.mean(0)).sum() + spread)
