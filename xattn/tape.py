"""Where maps go while a denoiser runs: buffers made once, bytes known ahead, one copy a step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor

from xattn.files import FolderStore
from xattn.runs import AXES, Layer, Store


@dataclass(frozen=True)
class Shape:
    """The axes of a recording, from which its bytes follow before anything is run.

    Attributes:
        layers: what is kept, one entry for each layer or, without that axis, for each grid.
        images: recorded rows of the batch.
        tokens: kept positions of the token axis.
        steps: of the schedule; None where a user's own loop doesn't say.
        keep: which of "step", "layer", "head" are kept.
        dtype: of the kept maps.
    """

    layers: tuple[Layer, ...]
    images: int
    tokens: int
    steps: int | None
    keep: frozenset[str]
    dtype: torch.dtype

    def of_layer(self, layer: Layer) -> tuple[int, ...]:
        """Gives (images, heads, tokens, height, width) of one step of a layer."""
        heads = layer.heads if "head" in self.keep else 1
        return (self.images, heads, self.tokens, *layer.grid)

    @property
    def numel(self) -> int:
        """How many numbers one step has."""
        return sum(torch.Size(self.of_layer(layer)).numel() for layer in self.layers)

    @property
    def rows(self) -> int:
        """How many steps are kept apart."""
        return (self.steps or 1) if "step" in self.keep else 1

    @property
    def nbytes(self) -> int:
        """The bytes that the finished recording takes."""
        return self.rows * self.numel * self.dtype.itemsize


def views(flat: Tensor, shape: Shape) -> list[Tensor]:
    """Splits (..., numel) into one view for each layer, (..., images, heads, tokens, h, w)."""
    sizes = [torch.Size(shape.of_layer(layer)) for layer in shape.layers]
    parts = flat.split([size.numel() for size in sizes], dim=-1)
    lead = flat.shape[:-1]
    return [part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)] or [
        flat.reshape(*lead, 0)
    ]


def shapes_of(shape: Shape, rows: int) -> tuple[tuple[int, ...], ...]:
    """Gives each layer's (steps, images, heads, tokens, height, width)."""
    return tuple((rows, *shape.of_layer(layer)) for layer in shape.layers)


class RowStore:
    """Maps in memory, each step one flat row; what a tape fills and a ``Run`` reads."""

    def __init__(self, shape: Shape, device: torch.device, pinned: bool) -> None:
        self.shape = shape
        with torch.inference_mode(False):
            self.flat = torch.zeros(
                shape.rows, shape.numel, dtype=shape.dtype, device=device, pin_memory=pinned
            )
        self.ready: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that the kept maps take."""
        return self.flat.numel() * self.flat.element_size()

    def write(self, row: int, values: Tensor) -> None:
        """Copies one step's numbers, without waiting for the device."""
        if row >= len(self.flat):  # a loop whose length nobody knew
            with torch.inference_mode(False):
                self.flat = torch.cat([self.flat, torch.zeros_like(self.flat)])
        self.flat[row].copy_(values, non_blocking=True)
        if values.is_cuda:
            self.ready = self.ready or torch.cuda.Event()
            self.ready.record()

    def trim(self, rows: int) -> None:
        """Gives back the room for steps that never came."""
        if rows < len(self.flat):
            self.flat = self.flat[:rows].clone()

    def read(self, layer: int, steps: Sequence[int]) -> Tensor:
        """Gives (steps, images, heads, tokens, height, width) of a layer, in the kept dtype."""
        if self.ready is not None:
            self.ready.synchronize()
        return views(self.flat, self.shape)[layer][list(steps)].cpu()


class FolderWriter:
    """Maps on disk, a file for each step, written behind the denoiser's back."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.store = FolderStore(folder, shapes_of(shape, shape.rows), shape.dtype)
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xattn-writer")
        self.pending: Future[None] | None = None

    def write(self, row: int, values: Tensor) -> None:
        """Hands one step to the writer; raises what went wrong with the one before."""
        self.flush()
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            host = values.clone()
        self.pending = self.pool.submit(self._save, row, host, event)

    def _save(self, row: int, host: Tensor, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        self.store.write(row, [part.contiguous() for part in views(host, self.shape)])

    def flush(self) -> None:
        """Waits for the step that is being written."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits, and lets the thread go."""
        try:
            self.flush()
        finally:
            self.pool.shutdown()

    def written(self, rows: int) -> FolderStore:
        """Gives the store of the rows that were written, however many were planned."""
        return FolderStore(self.store.folder, shapes_of(self.shape, rows), self.shape.dtype)


class Tape:
    """Takes each denoiser call's maps from fixed buffers and keeps them as was asked.

    Layers write float32 into ``heads_of(...)``'s views during a call; ``end_call`` averages the
    calls of a step, and the steps where they aren't kept, in float32, and hands each finished
    step on. The buffers stay where they are, so a compiled denoiser can write into them.
    """

    def __init__(self, shape: Shape, device: torch.device, to: str | torch.device | Path) -> None:
        self.shape = shape
        with torch.inference_mode(False):  # a later call may be outside of it
            self.staging = torch.zeros(shape.numel, dtype=torch.float32, device=device)
        self.views = views(self.staging, shape)
        self.calls = 0
        self.steps = 0
        self.folder: FolderWriter | None = None
        self.store: Store
        if isinstance(to, Path):
            self.folder = FolderWriter(shape, to)
            self.store = self.folder.store
        else:
            where = torch.device(to)
            pinned = where.type == "cpu" and device.type == "cuda"
            self.store = RowStore(shape, where, pinned)
        self._grouped = "layer" not in shape.keep

    def end_call(self, ends_step: bool) -> None:
        """Takes what the layers wrote in the call that just ended."""
        self.calls += 1
        if ends_step and self.calls == 1:  # the usual case needs no sum
            self._commit(self.staging)
        else:
            if self.calls == 1:
                self.sums = self.staging.clone()
            else:
                self.sums.add_(self.staging)
            if ends_step:
                self.end_step()
        if self._grouped:
            self.staging.zero_()  # layers add to it

    def end_step(self) -> None:
        """Completes a step whose end nobody announced; does nothing where none is open."""
        if self.calls:
            self._commit(self.sums / self.calls)

    def _commit(self, values: Tensor) -> None:
        if "step" in self.shape.keep:
            self._write(self.steps, values)
        else:
            self._accumulate(values)
        self.calls = 0
        self.steps += 1

    def _accumulate(self, values: Tensor) -> None:
        if self.steps == 0:
            with torch.inference_mode(False):
                self.total = torch.empty_like(values).copy_(values)
        else:
            self.total.add_(values)

    def _write(self, row: int, values: Tensor) -> None:
        writer = self.folder or self.store
        writer.write(row, values.to(self.shape.dtype))  # type: ignore[union-attr]

    def finish(self) -> None:
        """Completes what is kept; of a run cut short, the steps that were complete."""
        if "step" not in self.shape.keep and self.steps:
            self._write(0, self.total / self.steps)
        if isinstance(self.store, RowStore) and "step" in self.shape.keep:
            self.store.trim(self.steps)
        if self.folder is not None:
            self.folder.close()
            rows = self.steps if "step" in self.shape.keep else 1
            self.store = self.folder.written(rows)


def check_room(shape: Shape, device: torch.device, to: str | torch.device | Path) -> None:
    """Raises MemoryError before the first step when the maps would not fit where they go.

    The error says which options would make them fit.
    """
    working = 4 * shape.numel  # the float32 buffer that layers write into
    free, place = free_bytes(device, device)
    if working > free:
        raise MemoryError(
            f"recording needs a buffer of {_size(working)} on {device}, which has {_size(free)} "
            "free; record fewer words= or layers=, or without the heads"
        )
    free, place = free_bytes(device, to)
    if shape.nbytes <= free:
        return
    raise MemoryError(
        f"this recording takes {_size(shape.nbytes)}, and {place} has {_size(free)} free; "
        + _advice(shape, free, to)
    )


def check_room_for(what: str, nbytes: int, device: torch.device, advice: str = "") -> None:
    """Raises MemoryError before the first step when something would not fit a device."""
    free, place = free_bytes(device, device)
    if nbytes > free:
        raise MemoryError(f"{what} {_size(nbytes)}, and {place} has {_size(free)} free{advice}")


def new_folder(parent: Path) -> Path:
    """Makes the folder of a run: a new one, so that no earlier run is written over."""
    number = 0
    while True:
        folder = parent / f"run-{number:05d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def free_bytes(device: torch.device, to: str | torch.device | Path) -> tuple[int, str]:
    """Gives the bytes free where maps would go, and the name of that place."""
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
    """Gives the axes of the same recording with some of them averaged."""
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
