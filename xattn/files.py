"""Recordings on disk: one safetensors file, or a folder that a long run was streamed to.

A file holds the maps as tensors ``<run>/layer/<n>`` and images as PNG bytes ``<run>/image/<n>``;
its ``__metadata__`` a versioned JSON header with everything else. Checksums cover the header and
each tensor, so that damage is an error and never a wrong map. Loading runs no code.

A folder holds ``header.json`` of the same content, one ``step-00000.safetensors`` for each step
(tensors named "0", "1" ... after the layers) and ``image-00000.png``; its maps are read when they
are asked for. A folder of several such folders holds several runs.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xattn.prompts import Prompt
from xattn.runs import AXES, Layer, MemoryStore, Run

FORMAT = "xattn"
VERSION = 1
HEADER = "header.json"
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32)}
_DAMAGE = (
    SafetensorError,
    Image.DecompressionBombError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # RecursionError too
    SyntaxError,  # what Pillow raises for a broken PNG
    TypeError,
    ValueError,
)


EXTRAS = ("estimates", "affinity")  # what a run may have beside its maps


class FileError(ValueError):
    """A file that is not a recording, is damaged, or is of a newer version."""


def save(path: str | os.PathLike[str], runs: Sequence[Run]) -> None:
    """Writes the complete steps of runs, and their images, to one safetensors file.

    It is written aside and renamed: what was at ``path`` stays whole until the new file is.

    Raises:
        ValueError: no run has a complete step.
        OSError: ``path`` is a folder or is in none, or the file can't be written.
    """
    _check_place(Path(path))
    kept = [run for run in runs if run.done]
    if not kept:
        raise ValueError("nothing to save: no step is complete yet")
    tensors: dict[str, torch.Tensor] = {}
    for r, run in enumerate(kept):
        steps = range(_steps(run.keep, run.done))
        for n in range(len(run.layers)):
            tensors[f"{r}/layer/{n}"] = run.store.read(n, steps).contiguous()
        for name, extra in _extras(run).items():
            tensors[f"{r}/{name}"] = extra
        for n, image in enumerate(run.images):
            tensors[f"{r}/image/{n}"] = torch.frombuffer(bytearray(_png(image)), dtype=torch.uint8)
    header = {
        "runs": [_describe(run, str(tensors[f"{r}/layer/0"].dtype)) for r, run in enumerate(kept)],
        "sums": {name: _sum(_raw(tensor)) for name, tensor in tensors.items()},
    }
    aside(Path(path), lambda tmp: _save_ordered(tensors, tmp, _sealed(header)))


def load_run(path: str | os.PathLike[str], number: int) -> Run:
    """Reads one of a file's runs, and nothing of the others.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        FileError: it is not a recording, is damaged, or has no such run.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no recording at {path}")
    with damage_named(path), safe_open(path, framework="pt") as file:
        header = _opened(file.metadata(), path)
        count = len(header["runs"])
        _check(0 <= number < count, path, f"run {number} was asked for, it has {count}")
        return _read_run(file, header, number, path)


def load(path: str | os.PathLike[str]) -> list[Run]:
    """Reads the runs of a file or a folder.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        FileError: it is not a recording, is damaged, or was written by a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no recording at {path}")
    with damage_named(path):
        return _load_folders(path) if path.is_dir() else _load_file(path)


@contextmanager
def damage_named(
    path: Path, what: str = "is damaged, or is not a recording of xattn"
) -> Iterator[None]:
    """Raise FileError for whatever a damaged or missing file leads to."""
    try:
        yield
    except FileError:
        raise
    except _DAMAGE as error:
        raise FileError(f"{path} {what} ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class FolderStore:
    """Maps in a folder, one safetensors file for each step.

    Attributes:
        folder: where they are; it is made by the first ``write``.
        shapes: of each layer, (steps, images, heads, tokens, height, width).
        dtype: of the maps.
    """

    folder: Path
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The bytes that the maps of all steps take."""
        return sum(torch.Size(s).numel() for s in self.shapes) * self.dtype.itemsize

    def write(self, step: int, tensors: Sequence[torch.Tensor]) -> None:
        """Writes the maps of a step: for each layer (images, heads, tokens, height, width)."""
        named = {str(n): t.detach().to("cpu", self.dtype) for n, t in enumerate(tensors)}
        named = {n: t.contiguous() for n, t in named.items()}
        for t, shape in zip(named.values(), self.shapes, strict=True):
            if tuple(t.shape) != tuple(shape[1:]):
                raise ValueError(f"a map of {tuple(t.shape)} where {tuple(shape[1:])} is expected")
        sums = {n: _sum(_raw(t)) for n, t in named.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = _sealed({"step": step, "sums": sums})
        aside(self._file(step), lambda tmp: _save_ordered(named, tmp, metadata))

    def read(self, layer: int, steps: Sequence[int]) -> torch.Tensor:
        """Gives (steps, images, heads, tokens, height, width) of a layer, in the kept dtype."""
        return torch.stack([self._read(layer, step) for step in steps])

    def _read(self, layer: int, step: int) -> torch.Tensor:
        path = self._file(step)
        try:
            with safe_open(path, framework="pt") as file:
                header = _opened(file.metadata(), path)
                tensor: torch.Tensor = file.get_tensor(str(layer))
            _check(header["step"] == step, path, f"it is of step {header['step']}")
            _check_tensor(path, str(layer), tensor, self.shapes[layer][1:], self.dtype)
            _check(header["sums"][str(layer)] == _sum(_raw(tensor)), path, "its maps have changed")
        except FileError:
            raise
        except _DAMAGE as error:
            raise FileError(f"{path} is damaged or missing ({error})") from error
        return tensor

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:05d}.safetensors"


def write_header(folder: str | os.PathLike[str], run: Run) -> None:
    """Writes what makes a folder of streamed maps loadable: its header, and the run's images.

    Call it when the run has ended; again when images have come.
    """
    folder, sums = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(run.images):
        png = _png(image)
        sums[_image_name(n)] = _sum(png)
        aside(folder / _image_name(n), partial(_write_bytes, png))
    for name, extra in _extras(run).items():
        sums[name] = _sum(_raw(extra))
        aside(folder / f"{name}.safetensors", partial(save_file, {name: extra}))
    dtype = str(run.store.dtype) if isinstance(run.store, FolderStore) else "float32"
    text = json.dumps(_sealed({"runs": [_describe(run, dtype)], "sums": sums}))
    aside(folder / HEADER, partial(_write_bytes, text.encode()))


# -- reading


def _load_file(path: Path) -> list[Run]:
    with safe_open(path, framework="pt") as file:
        header = _opened(file.metadata(), path)
        names = set(file.keys())
        _check(set(header["sums"]) == names, path, "its tensors are not those of its header")
        runs = [_read_run(file, header, r, path) for r in range(len(header["runs"]))]
    for r, run in enumerate(runs):
        names -= {f"{r}/layer/{n}" for n in range(len(run.layers))}
        names -= {f"{r}/image/{n}" for n in range(len(run.images))}
        names -= {f"{r}/{name}" for name in _extras(run)}
    _check(bool(runs) and not names, path, f"it holds unknown tensors: {sorted(names)}")
    return runs


def _read_run(file: Any, header: Mapping[str, Any], number: int, path: Path) -> Run:
    entry = header["runs"][number]

    def read(name: str) -> torch.Tensor:
        known = header["sums"][f"{number}/{name}"]
        tensor: torch.Tensor = file.get_tensor(f"{number}/{name}")
        _check(known == _sum(_raw(tensor)), path, f"{number}/{name} has changed")
        return tensor

    shapes, dtype, build = _parse(entry, path)
    maps = tuple(read(f"layer/{n}") for n in range(len(shapes)))
    for n, (tensor, shape) in enumerate(zip(maps, shapes, strict=True)):
        _check_tensor(path, f"{number}/layer/{n}", tensor, shape, dtype)
    pngs = [read(f"image/{n}") for n in range(entry["images"])]
    images = [_image(tensor.numpy().tobytes()) for tensor in pngs]
    run: Run = build(MemoryStore(maps), images)
    for name in EXTRAS:
        if entry[name] is not None:
            _add_extra(run, entry, name, read(name), path)
    return run


def _load_folders(path: Path) -> list[Run]:
    if (path / HEADER).exists():
        return _load_folder(path)
    parts = sorted(p.parent for p in path.glob(f"*/{HEADER}"))
    _check(bool(parts), path, f"it has no {HEADER}; a recording leaves one when it ends")
    return [run for part in parts for run in _load_folder(part)]


def _load_folder(folder: Path) -> list[Run]:
    header = _opened(json.loads((folder / HEADER).read_text(encoding="utf-8")), folder)
    (entry,) = header["runs"]
    shapes, dtype, build = _parse(entry, folder)
    for step in range(shapes[0][0]):
        name = f"step-{step:05d}.safetensors"
        _check((folder / name).exists(), folder, f"{name} is missing")
    images = []
    for n in range(entry["images"]):
        png = (folder / _image_name(n)).read_bytes()
        _check(header["sums"][_image_name(n)] == _sum(png), folder, "an image has changed")
        images.append(_image(png))
    run: Run = build(FolderStore(folder, shapes, dtype), images)
    for name in EXTRAS:
        if entry[name] is not None:
            with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
                extra = file.get_tensor(name)
            _check(header["sums"][name] == _sum(_raw(extra)), folder, f"{name} has changed")
            _add_extra(run, entry, name, extra, folder)
    return [run]


def _opened(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """Gives the JSON header out of the metadata around it, once those are in order."""
    if not isinstance(metadata, Mapping) or metadata.get("format") != FORMAT:
        raise FileError(f"{path} is not a recording of xattn: its header does not say so")
    version = int(metadata["version"])
    if version > VERSION:
        raise FileError(
            f"{path} is of version {version} of the format, this xattn reads up to {VERSION}: "
            "upgrade xattn to read it"
        )
    text = metadata["header"]
    sealed = _sum(f"{version}{text}".encode())
    _check(version == VERSION and metadata["sum"] == sealed, path, "its header has changed")
    header = json.loads(text)
    _check(isinstance(header, dict), path, "its header is not an object")
    return dict(header)


def _parse(
    entry: Mapping[str, Any], path: Path
) -> tuple[tuple[tuple[int, ...], ...], torch.dtype, Callable[..., Run]]:
    """Gives the shapes and dtype that a run's tensors must have, and what makes the run."""
    prompts = tuple(Prompt.from_json(p) for p in entry["prompts"])
    rows, positions = tuple(map(int, entry["rows"])), tuple(map(int, entry["positions"]))
    keep, done = frozenset(entry["keep"]), int(entry["done"])
    timesteps = tuple(map(float, entry["timesteps"]))
    latent = _grid(entry["latent"], path)
    layers = tuple(
        Layer(
            str(x["name"]), _grid(x["grid"], path), int(x["heads"]), tuple(map(str, x["members"]))
        )
        for x in entry["layers"]
    )
    _check(bool(prompts and rows and positions and layers), path, "a run has no maps")
    _check(all(0 <= r < len(prompts) for r in rows), path, "its rows name no prompt")
    _check(list(positions) == sorted(set(positions)), path, "its positions are not ascending")
    _check(positions[0] >= 0, path, "its positions are negative")
    _check(keep.issubset(AXES), path, f"its axes are unknown: {sorted(keep)}")
    _check(1 <= done <= len(timesteps), path, f"{done} of {len(timesteps)} steps")
    _check(all(x.heads > 0 for x in layers), path, "a layer has no head")
    head = "head" in keep
    shapes = tuple(
        (_steps(keep, done), len(rows), x.heads if head else 1, len(positions), *x.grid)
        for x in layers
    )

    def build(store: Any, images: list[Image.Image]) -> Run:
        return Run(
            prompts, rows, positions, layers, timesteps, latent, keep, store,
            info=dict(entry["info"]), images=images, done=done,
        )  # fmt: skip

    return shapes, _DTYPES[entry["dtype"]], build


def _grid(value: Any, path: Path) -> tuple[int, int]:
    height, width = map(int, value)
    _check(height > 0 and width > 0, path, f"a grid of {height}x{width}")
    return height, width


def _check_tensor(
    path: Path, name: str, tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> None:
    right = tuple(tensor.shape) == tuple(shape) and tensor.dtype == dtype
    found = f"{tensor.dtype} {tuple(tensor.shape)}"
    _check(right, path, f"{name} is {found}, its header says {dtype} {tuple(shape)}")
    sound = bool(torch.isfinite(tensor).all()) and float(tensor.min()) >= 0
    _check(sound, path, f"{name} holds values that are no probabilities")


def _extras(run: Run) -> dict[str, torch.Tensor]:
    """Gives what a run has beside its maps, of complete steps."""
    found = {}
    if run.estimates is not None:
        found["estimates"] = run.estimates[: run.done].contiguous()
    if run.affinity is not None:
        found["affinity"] = run.affinity.contiguous()
    return found


def _add_extra(
    run: Run, entry: Mapping[str, Any], name: str, extra: torch.Tensor, path: Path
) -> None:
    found = tuple(extra.shape)
    if name == "estimates":
        right = (run.done, len(run.rows), *run.latent)
        fits = len(found) == 5 and (*found[:2], *found[3:]) == right
    else:
        fits = len(found) == 5 and found[0] == len(run.rows) and found[1:3] == found[3:]
        fits = fits and bool(torch.isfinite(extra).all())
    _check(fits and found == tuple(entry[name]), path, f"{name} of shape {found}")
    setattr(run, name, extra)


def _check(right: bool, path: Path, what: str) -> None:
    if not right:
        raise FileError(f"{path} is damaged: {what}")


# -- writing


def _describe(run: Run, dtype: str) -> dict[str, Any]:
    return {
        "prompts": [prompt.to_json() for prompt in run.prompts],
        "rows": list(run.rows),
        "positions": list(run.positions),
        "layers": [
            {"name": x.name, "grid": list(x.grid), "heads": x.heads, "members": list(x.members)}
            for x in run.layers
        ],
        "timesteps": json_value(run.timesteps),
        "latent": list(run.latent),
        "keep": sorted(run.keep),
        "done": run.done,
        "dtype": dtype.removeprefix("torch."),
        "images": len(run.images),
        **dict.fromkeys(EXTRAS),
        **{name: list(extra.shape) for name, extra in _extras(run).items()},
        "info": json_value(run.info),
    }


def json_value(value: Any) -> Any:
    """Return a fact as JSON can hold it: what JSON has no form for as text.

    A fact never costs a recording. NaN and infinities become "nan" and "inf", scalars of numpy and
    torch Python's, anything else its ``str``.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(each) for each in value]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return json_value(value.item())
    return str(value)


def _sealed(header: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(header, allow_nan=False)
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "header": text,
        "sum": _sum(f"{VERSION}{text}".encode()),
    }


def _check_place(path: Path) -> None:
    """Raise an error unless a file can be at ``path``: before work is done for it."""
    folder = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: choose another path, such as one in it")
    if folder.is_dir():
        return
    if any(place.exists() and not place.is_dir() for place in path.parents):
        raise NotADirectoryError(f"{folder} leads through a file: choose another path")
    raise FileNotFoundError(
        f"there is no folder {folder} to save {path.name} in: make it first, as "
        f"Path({str(folder)!r}).mkdir(parents=True) does, or choose another path"
    )


def aside(path: Path, write: Callable[[str], Any]) -> None:
    """Writes to a new file beside ``path`` and renames it: whole, or not at all."""
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        tmp.touch()
        usual = tmp.stat().st_mode  # safetensors would let nobody else read it
        write(str(tmp))
        tmp.chmod(usual)
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def _save_ordered(
    tensors: Mapping[str, torch.Tensor], path: str, metadata: Mapping[str, str]
) -> None:
    """Writes safetensors whose bytes follow from what they hold.

    The library writes the metadata's entries in another order each time.
    """
    save_file(dict(tensors), path, metadata=dict(metadata))
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # padded with spaces, as the library does
            file.seek(8)
            file.write(text.ljust(size))


def _write_bytes(data: bytes, path: str) -> None:
    Path(path).write_bytes(data)


def _steps(keep: frozenset[str], done: int) -> int:
    return done if "step" in keep else 1


def _raw(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # (bytes,)
    return memoryview(flat)


def _sum(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _image(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    image.load()
    return image


def _image_name(n: int) -> str:
    return f"image-{n:05d}.png"
