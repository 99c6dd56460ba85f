"""Settings and report of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from xattn.batch.folder import Writer
from xattn.batch.items import Failure
from xattn.models.sizes import denoiser_of
from xattn.records.options import Options

FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 4},
    "webp": {"format": "WEBP", "lossless": True, "method": 2},
}


Progress = Callable[[Writer, Mapping[str, int]], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Report:
    """How a batch ended.

    Attributes:
        drawn: items that were drawn now.
        before: items that were done already.
        failures: lines that were not drawn, and why, in their order.
    """

    drawn: int
    before: int
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def __str__(self) -> str:
        parts = [f"{self.drawn} items drawn"]
        if self.before:
            parts.append(f"{self.before} done before")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        return ", ".join(parts)


@dataclass(frozen=True)
class Settings:
    """What all items of a batch have in common.

    Attributes:
        keep: the axes of the maps that stay apart; see ``record``.
        layers: names or globs of the layers to record.
        dtype: of the kept maps.
        images: "png", "webp" (lossless), or None to keep no images.
    """

    keep: tuple[str, ...] = ("layer",)
    layers: tuple[str, ...] | None = None
    dtype: torch.dtype = torch.float16
    images: str | None = "png"

    def __post_init__(self) -> None:
        Options(keep=frozenset(self.keep), dtype=self.dtype)
        if self.images not in (*FORMATS, None):
            raise ValueError(f"images={self.images!r}: there are {', '.join(FORMATS)} and None")

    def to_json(self, pipe: Any) -> dict[str, Any]:
        """Return the settings as a batch's folder keeps them."""
        return {
            "model": str(getattr(pipe.config, "_name_or_path", "") or type(pipe).__name__),
            "pipeline": type(pipe).__name__,
            "scheduler": type(pipe.scheduler).__name__,
            "torch_dtype": str(denoiser_of(pipe).dtype).removeprefix("torch."),
            "keep": sorted(self.keep),
            "layers": None if self.layers is None else list(self.layers),
            "dtype": str(self.dtype).removeprefix("torch."),
            "images": self.images,
        }
