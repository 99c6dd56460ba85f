"""What a recording keeps, and where."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from xattn.runs import AXES


@dataclass(frozen=True)
class Options:
    """What a recording keeps, and where; see ``record``."""

    keep: frozenset[str] = frozenset(("step", "layer"))
    words: tuple[str | int, ...] | None = None
    layers: str | tuple[str, ...] | None = None
    dtype: torch.dtype = torch.float16
    to: str | torch.device | Path = "cpu"
    negative: bool = False
    prompt: tuple[str, ...] | None = None
    rows: slice | None = None
    previews: bool = False

    def __post_init__(self) -> None:
        unknown = self.keep - set(AXES)
        if unknown:
            raise ValueError(f"keep={sorted(unknown)!r}: the axes are {', '.join(AXES)}")
        if "head" in self.keep and "layer" not in self.keep:
            raise ValueError(
                'keep="head" needs "layer" too: heads of different layers have no mean'
            )
        if not self.dtype.is_floating_point:
            raise ValueError(f"dtype={self.dtype} can't hold probabilities; use torch.float16")


def place(to: str | os.PathLike[str] | torch.device) -> str | torch.device | Path:
    """Tells a device from a folder: "cpu", "cuda:1" are devices, any other text is a path."""
    if isinstance(to, torch.device):
        return to
    if isinstance(to, str):
        try:
            return torch.device(to)
        except RuntimeError:
            return Path(to)
    return Path(to)
