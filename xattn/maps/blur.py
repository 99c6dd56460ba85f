"""Gaussian blur of maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (maps, height, width) under a Gaussian of a standard deviation in cells."""
    reach = max(1, round(4 * sigma))
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    height, width = maps.shape[-2:]
    rows = F.pad(maps.reshape(-1, 1, width), (reach, reach), mode="replicate")
    columns = F.conv1d(rows, kernel).reshape(-1, height, width).transpose(1, 2)
    columns = F.pad(columns.reshape(-1, 1, height), (reach, reach), mode="replicate")
    return F.conv1d(columns, kernel).reshape(-1, width, height).transpose(1, 2)
