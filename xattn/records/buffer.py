"""Maps while a denoiser runs: buffers allocated once, known size, one copy per step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from xattn.records.run import Store
from xattn.records.shape import Shape, views
from xattn.records.stores import FolderWriter, StepStore


class Buffer:
    """Fixed buffers that collect the maps of each denoiser call and pass on finished steps.

    During a call layers write float32 into the views of ``heads_of(...)``. ``end_call`` averages
    the calls of a step, and the steps if they are not kept, in float32, and passes on each finished
    step. The buffers never move, so a compiled denoiser can write into them.
    """

    def __init__(self, shape: Shape, device: torch.device, to: str | torch.device | Path) -> None:
        self.shape = shape
        with torch.inference_mode(False):  # a later call may run outside inference mode
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
            self.store = StepStore(shape, where, pinned)
        self._grouped = "layer" not in shape.keep

    def end_call(self, ends_step: bool) -> None:
        """Collect the maps written by the layers in the call that just ended."""
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
            self.staging.zero_()  # layers accumulate into it

    def end_step(self) -> None:
        """Complete a step whose end was not announced; do nothing if none is open."""
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

    def _write(self, step: int, values: Tensor) -> None:
        writer = self.folder or self.store
        writer.write(step, values.to(self.shape.dtype))  # type: ignore[union-attr]

    def finish(self) -> None:
        """Complete the recording; of a run cut short, keep only the finished steps."""
        if "step" not in self.shape.keep and self.steps:
            self._write(0, self.total / self.steps)
        if isinstance(self.store, StepStore) and "step" in self.shape.keep:
            self.store.trim(self.steps)
        if self.folder is not None:
            self.folder.close()
            steps = self.steps if "step" in self.shape.keep else 1
            self.store = self.folder.written(steps)
