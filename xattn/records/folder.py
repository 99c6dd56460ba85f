"""Runs streamed to a folder: a header and one file per step."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xattn.records.atomic import aside, save_ordered, write_bytes
from xattn.records.format import (
    DAMAGE,
    EXTRAS,
    HEADER,
    FileError,
    add_extra,
    check,
    check_tensor,
    checksum,
    describe,
    extras_of,
    image_of,
    opened,
    parse_run,
    png_of,
    raw_bytes,
    sealed_header,
)
from xattn.records.run import Run


@dataclass(frozen=True)
class FolderStore:
    """Maps in a folder, one safetensors file per step.

    Attributes:
        folder: its path; created by the first ``write``.
        shapes: for each layer, (steps, images, heads, tokens, height, width).
        dtype: dtype of the maps.
    """

    folder: Path
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of the maps of all steps, in bytes."""
        return sum(torch.Size(s).numel() for s in self.shapes) * self.dtype.itemsize

    def write(self, step: int, tensors: Sequence[torch.Tensor]) -> None:
        """Write the maps of a step: for each layer (images, heads, tokens, height, width)."""
        named = {str(n): t.detach().to("cpu", self.dtype) for n, t in enumerate(tensors)}
        named = {n: t.contiguous() for n, t in named.items()}
        for t, shape in zip(named.values(), self.shapes, strict=True):
            if tuple(t.shape) != tuple(shape[1:]):
                raise ValueError(f"a map has shape {tuple(t.shape)}, expected {tuple(shape[1:])}")
        sums = {n: checksum(raw_bytes(t)) for n, t in named.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = sealed_header({"step": step, "sums": sums})
        aside(self._file(step), lambda tmp: save_ordered(named, tmp, metadata))

    def read(self, layer: int, steps: Sequence[int]) -> torch.Tensor:
        """Return a layer's maps as kept, (steps, images, heads, tokens, height, width)."""
        return torch.stack([self._read(layer, step) for step in steps])

    def _read(self, layer: int, step: int) -> torch.Tensor:
        path = self._file(step)
        try:
            with safe_open(path, framework="pt") as file:
                header = opened(file.metadata(), path)
                tensor: torch.Tensor = file.get_tensor(str(layer))
            check(header["step"] == step, path, f"it belongs to step {header['step']}")
            check_tensor(path, str(layer), tensor, self.shapes[layer][1:], self.dtype)
            check(
                header["sums"][str(layer)] == checksum(raw_bytes(tensor)),
                path,
                "its maps have changed",
            )
        except FileError:
            raise
        except DAMAGE as error:
            raise FileError(f"{path} is damaged or missing ({error})") from error
        return tensor

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:05d}.safetensors"


def write_header(folder: str | os.PathLike[str], run: Run) -> None:
    """Write the header and images that make a folder of streamed maps loadable.

    Called at the end of the run, and again when images arrive.
    """
    folder, sums = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(run.images):
        png = png_of(image)
        sums[_image_name(n)] = checksum(png)
        aside(folder / _image_name(n), partial(write_bytes, png))
    for name, extra in extras_of(run).items():
        sums[name] = checksum(raw_bytes(extra))
        aside(folder / f"{name}.safetensors", partial(save_file, {name: extra}))
    dtype = str(run.store.dtype) if isinstance(run.store, FolderStore) else "float32"
    text = json.dumps(sealed_header({"runs": [describe(run, dtype)], "sums": sums}))
    aside(folder / HEADER, partial(write_bytes, text.encode()))


def load_folders(path: Path) -> list[Run]:
    """Load the run of a folder, or the runs of its subfolders."""
    if (path / HEADER).exists():
        return _load_folder(path)
    parts = sorted(p.parent for p in path.glob(f"*/{HEADER}"))
    check(bool(parts), path, f"{HEADER} is missing; a recording writes it at its end")
    return [run for part in parts for run in _load_folder(part)]


def _load_folder(folder: Path) -> list[Run]:
    header = opened(json.loads((folder / HEADER).read_text(encoding="utf-8")), folder)
    (entry,) = header["runs"]
    shapes, dtype, build = parse_run(entry, folder)
    for step in range(shapes[0][0]):
        name = f"step-{step:05d}.safetensors"
        check((folder / name).exists(), folder, f"{name} is missing")
    images = []
    for n in range(entry["images"]):
        png = (folder / _image_name(n)).read_bytes()
        check(header["sums"][_image_name(n)] == checksum(png), folder, "an image has changed")
        images.append(image_of(png))
    run: Run = build(FolderStore(folder, shapes, dtype), images)
    for name in EXTRAS:
        if entry[name] is not None:
            with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
                extra = file.get_tensor(name)
            check(header["sums"][name] == checksum(raw_bytes(extra)), folder, f"{name} has changed")
            add_extra(run, entry, name, extra, folder)
    return [run]


def _image_name(n: int) -> str:
    return f"image-{n:05d}.png"
