"""Free space on devices and disks, and what to change where it is too small."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from xattn.records.run import AXES
from xattn.records.shape import Shape


def check_room(shape: Shape, device: torch.device, to: str | torch.device | Path) -> None:
    """Raise MemoryError before the first step if the maps would not fit.

    The error names options that would make them fit.
    """
    working = 4 * shape.numel  # the float32 buffer the layers write into
    free, place = free_bytes(device, device)
    if working > free:
        raise MemoryError(
            f"recording needs a buffer of {_size(working)} on {device}, which has {_size(free)} "
            "free; record fewer words= or layers=, or drop the head axis"
        )
    free, place = free_bytes(device, to)
    if shape.nbytes <= free:
        return
    raise MemoryError(
        f"this recording takes {_size(shape.nbytes)}, and {place} has {_size(free)} free; "
        + _advice(shape, free, to)
    )


def check_room_for(what: str, nbytes: int, device: torch.device, advice: str = "") -> None:
    """Raise MemoryError before the first step if ``nbytes`` would not fit on a device."""
    free, place = free_bytes(device, device)
    if nbytes > free:
        raise MemoryError(f"{what} {_size(nbytes)}, and {place} has {_size(free)} free{advice}")


def free_bytes(device: torch.device, to: str | torch.device | Path) -> tuple[int, str]:
    """Return the free bytes where maps would go, and a name for that place."""
    if isinstance(to, Path):
        folder = to
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free, f"the disk of {os.fspath(to)}"
    where = torch.device(to)
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0], str(where)
    return psutil.virtual_memory().available, "this machine's memory"


def _advice(shape: Shape, free: int, to: str | torch.device | Path) -> str:
    fits = []
    for dropped in ({"head"}, {"step"}, {"layer", "head"}, {"step", "head"}, set(AXES)):
        smaller = without(shape, frozenset(dropped))
        if dropped & shape.keep and smaller.nbytes <= free:
            left = tuple(axis for axis in AXES if axis in smaller.keep)
            fits.append(f"keep={left!r} ({_size(smaller.nbytes)})")
            break
    half = replace(shape, dtype=torch.float16)
    if half.nbytes < shape.nbytes and half.nbytes <= free:
        fits.append(f"dtype=torch.float16 ({_size(half.nbytes)})")
    one = replace(shape, tokens=1).nbytes
    if shape.tokens > 1 and one <= free:
        fits.append(f"words=[...] ({_size(one)} for each token)")
    if not isinstance(to, Path):
        fits.append("to=a folder, which streams each step to disk")
    return "what would fit: " + ", or ".join(fits) if fits else "choose another place with to="


def without(shape: Shape, dropped: frozenset[str]) -> Shape:
    """Return the shape of the same recording with some axes averaged."""
    layers = shape.layers
    if "layer" in dropped:
        layers = tuple({(layer.grid, layer.middle): layer for layer in layers}.values())
    return replace(shape, layers=layers, keep=shape.keep - dropped)


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
