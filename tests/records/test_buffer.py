"""A run's buffer alone: numbers go in call by call, and their means come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xattn.records.buffer import Buffer
from xattn.records.folder import FolderStore
from xattn.records.run import Layer
from xattn.records.shape import Shape

CPU = torch.device("cpu")
LAYERS = (Layer("one", (2, 2), 2), Layer("two", (1, 2), 2))


def shape(*keep: str, steps: int | None = 3, dtype: torch.dtype = torch.float32) -> Shape:
    return Shape(LAYERS, images=1, tokens=2, steps=steps, keep=frozenset(keep), dtype=dtype)


def fill(buffer: Buffer, *calls: tuple[float, bool]) -> None:
    """Write a number into every cell of a call's maps; "layer" or not, it is the same number."""
    for value, ends_step in calls:
        for view in buffer.views:
            view.add_(value) if "layer" not in buffer.shape.keep else view.fill_(value)
        buffer.end_call(ends_step)


def values(store: Any, layer: int = 0, steps: int = 3) -> list[float]:
    maps: Tensor = store.read(layer, range(steps))
    flat = maps.flatten(1)
    assert torch.equal(flat, flat[:, :1].expand_as(flat))  # each step is one number
    return flat[:, 0].tolist()


def test_each_layer_has_a_view_of_the_same_memory() -> None:
    buffer = Buffer(shape("step", "layer", "head"), CPU, "cpu")
    assert [tuple(view.shape) for view in buffer.views] == [(1, 2, 2, 2, 2), (1, 2, 2, 1, 2)]
    buffer.views[1].fill_(1)
    assert buffer.staging.tolist() == [0.0] * 16 + [1.0] * 8
    assert buffer.store.nbytes == buffer.shape.nbytes == 3 * 24 * 4


def test_each_step_is_kept() -> None:
    buffer = Buffer(shape("step", "layer"), CPU, "cpu")
    fill(buffer, (1, True), (2, True), (4, True))
    buffer.finish()
    assert values(buffer.store) == values(buffer.store, 1) == [1, 2, 4]


def test_the_calls_of_a_step_are_averaged() -> None:
    buffer = Buffer(shape("step", "layer"), CPU, "cpu")
    fill(buffer, (1, False), (3, True), (5, True), (0, False), (0, False), (6, True))
    buffer.finish()
    assert values(buffer.store) == [2, 5, 2]


def test_steps_that_are_not_kept_are_averaged_in_float32() -> None:
    buffer = Buffer(shape("layer", dtype=torch.float16), CPU, "cpu")
    small = 2.0**-12  # beside 1 it is lost in float16
    fill(buffer, (1, True), (1, False), (3, True), (0, True))
    fill(buffer, *[(small, True)] * 5)
    buffer.finish()
    assert values(buffer.store, steps=1) == [torch.tensor((3 + 5 * small) / 8).half()]
    assert buffer.steps == 8


def test_layers_that_are_not_kept_add_to_a_buffer_that_is_cleared_after_each_call() -> None:
    buffer = Buffer(shape("step"), CPU, "cpu")
    fill(buffer, (1, True), (2, True), (4, True))
    buffer.finish()
    assert values(buffer.store) == [1, 2, 4]
    assert not buffer.staging.any()


def test_a_run_cut_short_keeps_its_whole_steps() -> None:
    buffer = Buffer(shape("step", "layer"), CPU, "cpu")
    fill(buffer, (1, True), (2, True), (9, False))
    buffer.finish()
    assert buffer.steps == 2
    assert buffer.store.read(0, [0, 1]).shape[0] == 2
    assert buffer.store.nbytes == 2 * 24 // 2 * 4
    averaged = Buffer(shape("layer"), CPU, "cpu")
    fill(averaged, (1, True), (2, True), (9, False))
    averaged.finish()
    assert values(averaged.store, steps=1) == [1.5]


def test_a_run_of_unknown_length_grows_and_is_trimmed() -> None:
    buffer = Buffer(shape("step", "layer", steps=None), CPU, "cpu")
    for value in range(5):
        fill(buffer, (value, False), (value, False))
        buffer.end_step()
        buffer.end_step()  # none is open
    buffer.finish()
    assert buffer.steps == 5
    assert values(buffer.store, steps=5) == [0, 1, 2, 3, 4]
    assert buffer.store.nbytes == 5 * 12 * 4


def test_nothing_is_kept_of_a_run_without_a_step() -> None:
    for keep in (("step", "layer"), ("layer",)):
        buffer = Buffer(shape(*keep), CPU, "cpu")
        buffer.finish()
        assert buffer.steps == 0


@pytest.mark.parametrize("keep", [("step", "layer"), ("layer",), ("step",)])
def test_a_folder_has_what_memory_has(tmp_path: Path, keep: Any) -> None:
    memory, disk = (Buffer(shape(*keep), CPU, to) for to in ("cpu", tmp_path))
    for buffer in (memory, disk):
        fill(buffer, (1, False), (3, True), (5, True))
        buffer.finish()
    steps = range(2 if "step" in keep else 1)
    assert isinstance(disk.store, FolderStore)
    assert torch.equal(disk.store.read(1, steps), memory.store.read(1, steps))


def test_later_calls_leave_what_was_kept_alone(tmp_path: Path) -> None:
    for to in ("cpu", tmp_path):
        buffer = Buffer(shape("step", "layer"), CPU, to)
        fill(buffer, (1, True), (2, True), (4, True))
        buffer.views[0].fill_(9)
        buffer.finish()
        assert values(buffer.store) == [1, 2, 4]


def test_buffers_made_in_inference_mode_can_be_written_outside_of_it() -> None:
    with torch.inference_mode():
        buffer = Buffer(shape("layer"), CPU, "cpu")
        fill(buffer, (1, True))
    fill(buffer, (3, True))
    buffer.finish()
    assert values(buffer.store, steps=1) == [2]
