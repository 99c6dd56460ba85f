"""What a recording keeps, and where."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xattn.runs import AXES

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, eq=False)
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
    embeds: Tensor | None = None
    affinity: bool = False

    def __post_init__(self) -> None:
        unknown = self.keep - set(AXES)
        if unknown:
            raise ValueError(f"keep={sorted(unknown)!r}: the axes are {', '.join(AXES)}")
        if "head" in self.keep and "layer" not in self.keep:
            raise ValueError(
                'keep="head" needs "layer" too: heads of different layers have no mean'
            )
        if self.dtype not in DTYPES:
            names = ", ".join(map(str, DTYPES))
            raise ValueError(f"dtype={self.dtype}: maps can be kept as {names}")
        if self.words is not None and not self.words:
            raise ValueError("words=[] keeps nothing; leave words= out to keep every word")
        if self.layers is not None and not self.layers:
            raise ValueError("layers=[] records nothing; leave layers= out to record every layer")
        if self.previews and self.negative:
            raise ValueError("previews=True and negative=True can't be had in one recording")
        if self.affinity and self.negative:
            raise ValueError("affinity=True and negative=True can't be had in one recording")
        if isinstance(self.to, Path) and self.to.exists() and not self.to.is_dir():
            raise ValueError(f"to={os.fspath(self.to)!r} is a file; maps are streamed to a folder")


def place(to: str | os.PathLike[str] | torch.device) -> str | torch.device | Path:
    """Tells a device from a folder: "cpu", "cuda:1" are devices, any other text is a path."""
    if isinstance(to, torch.device):
        return to
    if isinstance(to, str):
        try:
            return torch.device(to)
        except RuntimeError:
            pass
    return Path(to).resolve()  # whoever changes the working directory meanwhile
