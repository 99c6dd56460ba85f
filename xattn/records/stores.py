"""Destinations of finished steps: memory, or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from xattn.records.folder import FolderStore
from xattn.records.run import Store
from xattn.records.shape import Shape, shapes_of, views


class StepStore:
    """Maps in memory, each step one flat tensor; filled by a buffer, read by a ``Run``."""

    def __init__(self, shape: Shape, device: torch.device, pinned: bool) -> None:
        self.shape = shape
        with torch.inference_mode(False):
            self.flat = torch.zeros(
                shape.stored_steps, shape.numel, dtype=shape.dtype, device=device, pin_memory=pinned
            )
        self.ready: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        """Size of the kept maps in bytes."""
        return self.flat.numel() * self.flat.element_size()

    def write(self, step: int, values: Tensor) -> None:
        """Copy one step's values, without waiting for the device."""
        if step >= len(self.flat):  # a loop of unknown length
            with torch.inference_mode(False):
                self.flat = torch.cat([self.flat, torch.zeros_like(self.flat)])
        self.flat[step].copy_(values, non_blocking=True)
        if values.is_cuda:
            self.ready = self.ready or torch.cuda.Event()
            self.ready.record()

    def trim(self, steps: int) -> None:
        """Free the room of steps that never ran."""
        if steps < len(self.flat):
            self.flat = self.flat[:steps].clone()

    def read(self, layer: int, steps: Sequence[int]) -> Tensor:
        """Return a layer's maps as kept, (steps, images, heads, tokens, height, width)."""
        if self.ready is not None:
            self.ready.synchronize()
        return views(self.flat, self.shape)[layer][list(steps)].cpu()


class ImageStore:
    """The maps of one image of a store of several."""

    def __init__(self, store: Store, image: int, images: int) -> None:
        self.store = store
        self.image = image
        self.images = images

    @property
    def nbytes(self) -> int:
        """Size of the image's share of the kept maps in bytes."""
        return self.store.nbytes // self.images

    def read(self, layer: int, steps: Sequence[int]) -> Tensor:
        """Return a layer's maps as kept, (steps, 1, heads, tokens, height, width)."""
        return self.store.read(layer, steps)[:, self.image : self.image + 1]


class FolderWriter:
    """Maps on disk, one file per step, written in a background thread."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.store = FolderStore(folder, shapes_of(shape, shape.stored_steps), shape.dtype)
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xattn-writer")
        self.pending: Future[None] | None = None

    def write(self, step: int, values: Tensor) -> None:
        """Hand one step to the writer thread; raise the error of the step before, if any."""
        self.flush()
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        else:
            host = values.clone()
        self.pending = self.pool.submit(self._save, step, host, event)

    def _save(self, step: int, host: Tensor, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()
        self.store.write(step, [part.contiguous() for part in views(host, self.shape)])

    def flush(self) -> None:
        """Wait for the step being written."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last step, then stop the thread."""
        try:
            self.flush()
        finally:
            self.pool.shutdown()

    def written(self, steps: int) -> FolderStore:
        """Return the store of the steps actually written."""
        return FolderStore(self.store.folder, shapes_of(self.shape, steps), self.shape.dtype)


def new_folder(parent: Path) -> Path:
    """Make a new folder for a run, so that earlier runs are never overwritten."""
    number = 0
    while True:
        folder = parent / f"run-{number:05d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder
