"""Where finished steps go: memory, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from xattn.records.folder import FolderStore
from xattn.records.shape import Shape, shapes_of, views


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
