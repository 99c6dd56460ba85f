"""What a recording keeps, and where."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xattn.records.run import AXES

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

ACCELERATORS = ("cuda", "mps", "xpu")
"""Device types whose names never mean a folder, even if this machine has no such device."""

_OF_TRACE = ("keep", "words", "layers", "dtype", "to")


@dataclass(frozen=True)
class Options:
    """What a recording keeps, and where; see ``record``."""

    keep: frozenset[str] = frozenset(("step", "layer"))
    words: tuple[str | int, ...] | None = None
    layers: str | tuple[str, ...] | None = None
    dtype: torch.dtype = torch.float16
    to: str | torch.device | Path = "cpu"
    negative: bool = False
    previews: bool = False
    affinity: bool = False
    outputs: bool = False
    direction: str = "image"

    def __post_init__(self) -> None:
        unknown = self.keep - set(AXES)
        if unknown:
            raise ValueError(f"keep={sorted(unknown)!r}: expected any of {', '.join(AXES)}")
        if "head" in self.keep and "layer" not in self.keep:
            raise ValueError(
                'keep="head" needs "layer" too: heads of different layers cannot be averaged'
            )
        if self.dtype not in DTYPES:
            names = ", ".join(map(str, DTYPES))
            raise ValueError(f"dtype={self.dtype}: maps can be kept as {names}")
        if self.words is not None and not self.words:
            raise ValueError("words=[] keeps nothing; leave words= out to keep every word")
        if self.layers is not None and not self.layers:
            raise ValueError("layers=[] records nothing; leave layers= out to record every layer")
        if self.direction not in ("image", "text"):
            raise ValueError(
                f"direction={self.direction!r}: the queries are the image's or the text's; "
                "pass 'image' or 'text'"
            )
        if self.previews and self.negative:
            raise ValueError("previews=True and negative=True cannot be combined")
        if self.affinity and self.negative:
            raise ValueError("affinity=True and negative=True cannot be combined")
        if self.outputs and self.negative:
            raise ValueError("outputs=True and negative=True cannot be combined")
        if isinstance(self.to, Path) and self.to.exists() and not self.to.is_dir():
            raise ValueError(f"to={os.fspath(self.to)!r} is a file; maps are streamed to a folder")

    @classmethod
    def of(
        cls,
        *,
        keep: str | Iterable[str] = ("step", "layer"),
        words: str | int | Sequence[str | int] | None = None,
        layers: str | Sequence[str] | None = None,
        to: str | os.PathLike[str] | torch.device = "cpu",
        **given: Any,
    ) -> Options:
        """Return options as users write them: one word or several, a device or a folder.

        Raises:
            ValueError: an option is out of its range, or two contradict each other.
        """
        return cls(
            keep=frozenset((keep,) if isinstance(keep, str) else keep),
            words=None if words is None else _several(words),
            layers=layers if layers is None or isinstance(layers, str) else tuple(layers),
            to=place(to),
            **given,
        )

    @classmethod
    def of_trace(cls, trace: bool | Mapping[str, Any]) -> Options:
        """Return the options of an edit's ``trace=``, a bool or a mapping.

        Raises:
            ValueError: not an option of an edit's recording.
        """
        given = dict(trace) if isinstance(trace, Mapping) else {}
        unknown = sorted(set(given) - set(_OF_TRACE))
        if unknown:
            raise ValueError(f"trace={trace!r}: {unknown[0]!r} is none of {', '.join(_OF_TRACE)}")
        return cls.of(**{name: value for name, value in given.items() if value is not None})


def _several(words: str | int | Sequence[str | int]) -> tuple[str | int, ...]:
    return (words,) if isinstance(words, str | int) else tuple(words)


def place(to: str | os.PathLike[str] | torch.device) -> torch.device | Path:
    """Return the device or folder named by ``to=``: "cpu" and "cuda:1" are devices.

    Torch knows many more device names ("meta", "lazy", "xla", "ipu"). They mean folders unless
    the device can hold tensors here.

    Raises:
        ValueError: the device cannot hold maps here.
    """
    if isinstance(to, torch.device):
        problem = _problem(to)
        if problem:
            raise ValueError(f"to={to!r} cannot hold maps here ({problem}): use to='cpu'")
        return to
    if isinstance(to, str):
        device = _device(to)
        problem = _problem(device) if device else "no device"
        if device and not problem:
            return device
        if device and device.type in ACCELERATORS:
            raise ValueError(
                f"to={to!r} cannot hold maps here ({problem}): use to='cpu', or to='./{to}' for "
                "a folder of this name"
            )
    return Path(to).resolve()  # stays valid after a later chdir


def _device(name: str) -> torch.device | None:
    try:
        return torch.device(name)
    except RuntimeError:
        return None


def _problem(device: torch.device) -> str:
    """Return why a device cannot hold tensors here, or ""."""
    if device.type == "meta":
        return "its tensors have no content"
    try:
        torch.empty(1, device=device)
    except Exception as error:  # every missing backend raises its own type
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:80]}"
    return ""
