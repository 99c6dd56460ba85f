"""How alike two pictures are, without a network: structural similarity (Wang et al. 2004)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5
_STABLE = (0.01**2, 0.03**2)  # C1, C2 for a range of [0, 1]


def structural_similarity(one: Any, two: Any) -> float:
    """Return the mean structural similarity of two pictures' luminance, in [-1, 1].

    A Gaussian window of 11 x 11 with sigma 1.5, K1 0.01 and K2 0.03, as in the paper (Wang et al.
    2004, section III). Equal pictures have 1.

    Args:
        one: a PIL image, or an array (height, width) in [0, 1].
        two: another of the same size.

    Raises:
        ValueError: their sizes differ.
    """
    x, y = _luminance(one), _luminance(two)
    if x.shape != y.shape:
        raise ValueError(f"the pictures' sizes differ: {tuple(x.shape)} and {tuple(y.shape)}")
    window = _window(min(_WINDOW, *x.shape))
    pictures = torch.stack([x, y, x * x, y * y, x * y])[:, None]  # (5, 1, height, width)
    mean_x, mean_y, xx, yy, xy = F.conv2d(pictures, window)[:, 0]
    one_, two_ = _STABLE
    light = (2 * mean_x * mean_y + one_) / (mean_x**2 + mean_y**2 + one_)
    spread = (xx - mean_x**2) + (yy - mean_y**2)
    return float((light * (2 * (xy - mean_x * mean_y) + two_) / (spread + two_)).mean())


def _luminance(picture: Any) -> Tensor:
    if hasattr(picture, "convert"):
        return torch.from_numpy(np.array(picture.convert("L"))).double() / 255
    return torch.as_tensor(np.asarray(picture)).double()


def _window(size: int) -> Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-(places**2) / (2 * _SIGMA**2))
    line = line / line.sum()
    return torch.outer(line, line)[None, None]
