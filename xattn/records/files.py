"""Recordings on disk: one safetensors file, or a folder that a long run was streamed to.

A file holds the maps as tensors ``<run>/layer/<n>`` and the images as PNG bytes
``<run>/image/<n>``; its ``__metadata__`` is a versioned JSON header with everything else.
Checksums cover the header and each tensor: damage raises an error instead of giving wrong maps.
Loading runs no code from the file.

A folder holds ``header.json`` with the same content, one ``step-00000.safetensors`` per step
(tensors named "0", "1" ... by layer) and ``image-00000.png``; maps are read on demand. A folder
of such folders holds several runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from xattn.records.atomic import aside, save_ordered
from xattn.records.concepts import flattened, nested
from xattn.records.folder import load_folders
from xattn.records.format import (
    EXTRAS,
    HEADER,
    TRACE,
    FileError,
    add_extra,
    check,
    check_place,
    check_tensor,
    checksum,
    damage_named,
    describe,
    extras_of,
    image_of,
    kept_steps,
    opened,
    parse_run,
    png_of,
    raw_bytes,
    sealed_header,
)
from xattn.records.run import MemoryStore, Run


def save(path: str | os.PathLike[str], runs: Sequence[Run]) -> None:
    """Write the complete steps of runs, and their images, to one safetensors file.

    Written aside, then renamed: a file already at ``path`` stays whole until the new one is.

    Raises:
        ValueError: no run has a complete step.
        OSError: ``path`` is a folder, its folder is missing, or the file cannot be written.
    """
    check_place(Path(path))
    kept = [run for run in flattened(runs) if run.done]
    if not kept:
        raise ValueError("nothing to save: no step is complete yet")
    tensors: dict[str, torch.Tensor] = {}
    for r, run in enumerate(kept):
        steps = range(kept_steps(run.keep, run.done))
        for n in range(len(run.layers)):
            tensors[f"{r}/layer/{n}"] = run.store.read(n, steps).contiguous()
        for name, extra in extras_of(run).items():
            tensors[f"{r}/{name}"] = extra
        for n, image in enumerate(run.images):
            tensors[f"{r}/image/{n}"] = torch.frombuffer(
                bytearray(png_of(image)), dtype=torch.uint8
            )
    header = {
        "runs": [describe(run, str(tensors[f"{r}/layer/0"].dtype)) for r, run in enumerate(kept)],
        "sums": {name: checksum(raw_bytes(tensor)) for name, tensor in tensors.items()},
    }
    aside(Path(path), lambda tmp: save_ordered(tensors, tmp, sealed_header(header)))


def load_run(path: str | os.PathLike[str], number: int) -> Run:
    """Read one run of a file, without reading the others.

    Raises:
        FileNotFoundError: nothing exists at ``path``.
        FileError: it is not a recording, is damaged, or does not have this run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no recording at {path}")
    with damage_named(path), safe_open(path, framework="pt") as file:
        header = opened(file.metadata(), path)
        count = len(header["runs"])
        check(0 <= number < count, path, f"run {number} was asked for, it has {count}")
        return _read_run(file, header, number, path)


def load(path: str | os.PathLike[str]) -> list[Run]:
    """Read the runs of a file, of a streamed folder, or of one that the command line wrote.

    Raises:
        FileNotFoundError: nothing exists at ``path``.
        FileError: it is not a recording, is damaged, or was written by a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no recording at {path}")
    with damage_named(path):
        if not path.is_dir():
            return nested(_load_file(path))
        drawn = path / TRACE  # beside its pictures, where the command line writes it
        whole = drawn.exists() and not (path / HEADER).exists()
        return nested(_load_file(drawn)) if whole else load_folders(path)


# -- reading


def _load_file(path: Path) -> list[Run]:
    with safe_open(path, framework="pt") as file:
        header = opened(file.metadata(), path)
        names = set(file.keys())
        if "pivots" in names:
            raise FileError(
                f"{path} is an inversion, not a recording: use xattn.load_inversion, or pass it as "
                "--image to xattn edit"
            )
        check(set(header["sums"]) == names, path, "its tensors are not those of its header")
        runs = [_read_run(file, header, r, path) for r in range(len(header["runs"]))]
    for r, run in enumerate(runs):
        names -= {f"{r}/layer/{n}" for n in range(len(run.layers))}
        names -= {f"{r}/image/{n}" for n in range(len(run.images))}
        names -= {f"{r}/{name}" for name in extras_of(run)}
    check(bool(runs) and not names, path, f"it holds unknown tensors: {sorted(names)}")
    return runs


def _read_run(file: Any, header: Mapping[str, Any], number: int, path: Path) -> Run:
    entry = header["runs"][number]

    def read(name: str) -> torch.Tensor:
        known = header["sums"][f"{number}/{name}"]
        tensor: torch.Tensor = file.get_tensor(f"{number}/{name}")
        check(known == checksum(raw_bytes(tensor)), path, f"{number}/{name} has changed")
        return tensor

    shapes, dtype, build = parse_run(entry, path)
    maps = tuple(read(f"layer/{n}") for n in range(len(shapes)))
    for n, (tensor, shape) in enumerate(zip(maps, shapes, strict=True)):
        check_tensor(path, f"{number}/layer/{n}", tensor, shape, dtype)
    pngs = [read(f"image/{n}") for n in range(entry["images"])]
    images = [image_of(tensor.numpy().tobytes()) for tensor in pngs]
    run: Run = build(MemoryStore(maps), images)
    for name in EXTRAS:
        if entry[name] is not None:
            add_extra(run, entry, name, read(name), path)
    return run
