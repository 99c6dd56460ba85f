"""The file format of runs: a versioned JSON header, checksums, tensors and PNG bytes."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from xattn.records.run import AXES, Layer, Run
from xattn.text.prompt import Prompt

FORMAT = "xattn"


VERSION = 1


HEADER = "header.json"


TRACE = "trace.safetensors"
"""Name of the recording in the folders that the command line writes."""


_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32)}


DAMAGE = (
    SafetensorError,
    Image.DecompressionBombError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # includes RecursionError
    SyntaxError,  # raised by Pillow for a broken PNG
    TypeError,
    ValueError,
)


EXTRAS = ("estimates", "affinity")  # optional tensors of a run beside its maps


class FileError(ValueError):
    """A file that is not a recording, is damaged, or was written by a newer version."""


@contextmanager
def damage_named(
    path: Path, what: str = "is damaged, or is not a recording of xattn"
) -> Iterator[None]:
    """Turn any error caused by a damaged or missing file into FileError."""
    try:
        yield
    except FileError:
        raise
    except DAMAGE as error:
        raise FileError(f"{path} {what} ({type(error).__name__}: {error})") from error


def opened(metadata: Mapping[str, str] | None, path: Path) -> dict[str, Any]:
    """Return the JSON header from the metadata, after checking format, version and checksum."""
    if not isinstance(metadata, Mapping) or metadata.get("format") != FORMAT:
        raise FileError(f"{path} is not a recording of xattn: its header does not say so")
    version = int(metadata["version"])
    if version > VERSION:
        raise FileError(
            f"{path} has format version {version}, this xattn reads up to {VERSION}: "
            "upgrade xattn to read it"
        )
    text = metadata["header"]
    sealed = checksum(f"{version}{text}".encode())
    check(version == VERSION and metadata["sum"] == sealed, path, "its header has changed")
    header = json.loads(text)
    check(isinstance(header, dict), path, "its header is not an object")
    return dict(header)


def parse_run(
    entry: Mapping[str, Any], path: Path
) -> tuple[tuple[tuple[int, ...], ...], torch.dtype, Callable[..., Run]]:
    """Return the shapes and dtype expected of a run's tensors, and a builder of the run."""
    prompts = tuple(Prompt.from_json(p) for p in entry["prompts"])
    prompt_of, positions = tuple(map(int, entry["prompt_of"])), tuple(map(int, entry["positions"]))
    keep, done = frozenset(entry["keep"]), int(entry["done"])
    timesteps = tuple(map(float, entry["timesteps"]))
    latent = _grid(entry["latent"], path)
    layers = tuple(
        Layer(
            str(x["name"]), _grid(x["grid"], path), int(x["heads"]), tuple(map(str, x["members"]))
        )
        for x in entry["layers"]
    )
    check(bool(prompts and prompt_of and positions and layers), path, "a run has no maps")
    check(
        all(0 <= p < len(prompts) for p in prompt_of), path, "its images do not match its prompts"
    )
    check(list(positions) == sorted(set(positions)), path, "its positions are not ascending")
    check(positions[0] >= 0, path, "its positions are negative")
    check(keep.issubset(AXES), path, f"its axes are unknown: {sorted(keep)}")
    check(1 <= done <= len(timesteps), path, f"{done} of {len(timesteps)} steps")
    check(all(x.heads > 0 for x in layers), path, "a layer has no head")
    frames = int(entry.get("frames", 1))  # files of images alone don't say
    check(frames >= 1 and len(prompt_of) % frames == 0, path, f"{frames} frames of a video")
    globs = entry.get("map_layers")
    map_layers = None if globs is None else tuple(map(str, globs))
    head = "head" in keep
    shapes = tuple(
        (kept_steps(keep, done), len(prompt_of), x.heads if head else 1, len(positions), *x.grid)
        for x in layers
    )

    def build(store: Any, images: list[Image.Image]) -> Run:
        return Run(
            prompts, prompt_of, positions, layers, timesteps, latent, keep, store,
            info=dict(entry["info"]), images=images, done=done, map_layers=map_layers,
            frames=frames,
        )  # fmt: skip

    return shapes, _DTYPES[entry["dtype"]], build


def _grid(value: Any, path: Path) -> tuple[int, int]:
    height, width = map(int, value)
    check(height > 0 and width > 0, path, f"a grid of {height}x{width}")
    return height, width


def check_tensor(
    path: Path, name: str, tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> None:
    """Raise FileError unless a map matches the header's shape and dtype and holds probabilities.

    NaN passes: a model out of its range makes it, and the recording shows where.
    """
    right = tuple(tensor.shape) == tuple(shape) and tensor.dtype == dtype
    found = f"{tensor.dtype} {tuple(tensor.shape)}"
    check(right, path, f"{name} is {found}, its header says {dtype} {tuple(shape)}")
    sound = not bool(((tensor < 0) | tensor.isinf()).any())
    check(sound, path, f"{name} holds values that are not probabilities")


def extras_of(run: Run) -> dict[str, torch.Tensor]:
    """Return a run's optional tensors, cut to the complete steps."""
    found = {}
    if run.estimates is not None:
        found["estimates"] = run.estimates[: run.done].contiguous()
    if run.affinity is not None:
        found["affinity"] = run.affinity.contiguous()
    return found


def add_extra(
    run: Run, entry: Mapping[str, Any], name: str, extra: torch.Tensor, path: Path
) -> None:
    """Attach an optional tensor to a run after checking its shape."""
    found = tuple(extra.shape)
    if name == "estimates":
        right = (run.done, len(run.prompt_of), *run.latent)
        fits = len(found) == 5 and (*found[:2], *found[3:]) == right
    else:
        fits = len(found) == 5 and found[0] == len(run.prompt_of) and found[1:3] == found[3:]
        fits = fits and not bool(extra.isinf().any())
    check(fits and found == tuple(entry[name]), path, f"{name} has shape {found}")
    setattr(run, name, extra)


def check(right: bool, path: Path, what: str) -> None:
    """Raise FileError naming the file as damaged, unless ``right``."""
    if not right:
        raise FileError(f"{path} is damaged: {what}")


# -- writing


def describe(run: Run, dtype: str) -> dict[str, Any]:
    """Return the header entry of a run, as plain JSON values."""
    return {
        "prompts": [prompt.to_json() for prompt in run.prompts],
        "prompt_of": list(run.prompt_of),
        "positions": list(run.positions),
        "layers": [
            {"name": x.name, "grid": list(x.grid), "heads": x.heads, "members": list(x.members)}
            for x in run.layers
        ],
        "timesteps": json_value(run.timesteps),
        "latent": list(run.latent),
        "frames": run.frames,
        "keep": sorted(run.keep),
        "done": run.done,
        "dtype": dtype.removeprefix("torch."),
        "images": len(run.images),
        **dict.fromkeys(EXTRAS),
        **{name: list(extra.shape) for name, extra in extras_of(run).items()},
        "map_layers": json_value(run.map_layers),
        "info": json_value(run.info),
    }


def json_value(value: Any) -> Any:
    """Return a fact in a form JSON can hold, as text if need be.

    An odd fact must not lose a recording. NaN and infinities become "nan" and "inf", numpy and
    torch scalars become Python's, anything else its ``str``.
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


def sealed_header(header: Mapping[str, Any]) -> dict[str, str]:
    """Return a file's metadata: format, version, header and the header's checksum."""
    text = json.dumps(header, allow_nan=False)
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "header": text,
        "sum": checksum(f"{VERSION}{text}".encode()),
    }


def check_place(path: Path) -> None:
    """Raise an error unless a file can be written at ``path``, before the work starts."""
    folder = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: choose another path, such as one inside it")
    if folder.is_dir():
        return
    if any(place.exists() and not place.is_dir() for place in path.parents):
        raise NotADirectoryError(f"{folder} passes through a file: choose another path")
    raise FileNotFoundError(
        f"the folder {folder} for {path.name} does not exist: make it first with "
        f"Path({str(folder)!r}).mkdir(parents=True), or choose another path"
    )


def kept_steps(keep: frozenset[str], done: int) -> int:
    """Return the number of stored steps: those done, or 1 for their mean."""
    return done if "step" in keep else 1


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's memory as bytes."""
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # (bytes,)
    return memoryview(flat)


def checksum(data: bytes | memoryview) -> str:
    """Return a checksum of bytes, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def png_of(image: Image.Image) -> bytes:
    """Encode an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def image_of(png: bytes) -> Image.Image:
    """Decode a PNG file."""
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    image.load()
    return image
