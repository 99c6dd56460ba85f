"""``Inversion``: a photograph as the model's own latents at every level, kept for edits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from xattn.inversion.maker import Maker
from xattn.records.atomic import aside, save_ordered
from xattn.records.format import (
    check,
    check_place,
    checksum,
    damage_named,
    image_of,
    opened,
    png_of,
    raw_bytes,
    sealed_header,
)
from xattn.views.pasting import Fidelity, fidelity

KIND = "inversion"


@dataclass(frozen=True, eq=False, repr=False)
class Inversion:
    """A photograph's latents at every level of a schedule, from noise to clean: its pivots.

    Attributes:
        prompt: the text that it was inverted with.
        method: the name of the method.
        pivots: float32 (steps + 1, 1, channels, height, width) on the CPU, the denoiser's input
            at each level; the last is the autoencoder's encoding.
        timesteps: the timestep of each step.
        guidance_scale: the scale that later edits should have; None where any will do.
        extra: what else the method found: noises (steps, 1, channels, height, width), or
            embeddings (steps, tokens, channels).
        maker: the model and schedule that made it; edits must have the same.
        photo: the picture as it was encoded: upright, RGB, resized for the model.
        reconstruction: what the autoencoder makes of it: the most that an edit can keep.
        replay: the source as the method draws it again, where it was drawn to measure.
        original: the picture as given, for ``paste``; None after loading.
        calls: how many denoiser calls it took.
        options: the pipeline's further options.
    """

    prompt: str
    method: str
    pivots: Tensor
    timesteps: tuple[float, ...]
    guidance_scale: float | None
    maker: Maker
    photo: Image.Image
    reconstruction: Image.Image
    extra: Tensor | None = None
    replay: Image.Image | None = None
    original: Image.Image | None = None
    calls: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.timesteps)

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return self.pivots.nbytes + (0 if self.extra is None else self.extra.nbytes)

    @property
    def fidelity(self) -> Fidelity | None:
        """PSNR of the replayed source to the autoencoder's reconstruction, and to the photo.

        None where it was not replayed: draw the source with ``edit(pipe, prompt, source=...)``.
        """
        if self.replay is None:
            return None
        return fidelity(self.replay, self.reconstruction, self.photo)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file; ``load_inversion`` reads it.

        Raises:
            OSError: its folder is missing, or the file cannot be written.
        """
        check_place(Path(path))
        pictures = {"photo": self.photo, "reconstruction": self.reconstruction}
        if self.replay is not None:
            pictures["replay"] = self.replay
        tensors = {
            name: torch.frombuffer(bytearray(png_of(each)), dtype=torch.uint8)
            for name, each in pictures.items()
        }
        tensors["pivots"] = self.pivots.contiguous()
        if self.extra is not None:
            tensors["extra"] = self.extra.contiguous()
        header = {
            "kind": KIND,
            "prompt": self.prompt,
            "method": self.method,
            "timesteps": list(self.timesteps),
            "guidance_scale": self.guidance_scale,
            "maker": self.maker.to_json(),
            "calls": self.calls,
            "sums": {name: checksum(raw_bytes(each)) for name, each in tensors.items()},
        }
        aside(Path(path), lambda tmp: save_ordered(tensors, tmp, sealed_header(header)))

    def __repr__(self) -> str:
        found = "" if self.fidelity is None else f", {self.fidelity}"
        return f"Inversion({self.prompt!r}: {self.method}, {self.steps} steps{found})"

    def _repr_png_(self) -> bytes:
        return png_of(self.replay or self.reconstruction)


def load_inversion(path: str | os.PathLike[str]) -> Inversion:
    """Read an inversion written by ``Inversion.save``; it runs no code.

    Model, schedule and prompt are checked when it is used.

    Raises:
        FileNotFoundError: nothing exists at ``path``.
        FileError: it is not an inversion, or is damaged.

    Example:
        >>> inversion = xattn.load_inversion("car.safetensors")
        >>> result = xattn.edit(pipe, inversion.prompt, edit, source=inversion)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no inversion at {path}")
    with (
        damage_named(path, "is damaged, or is not an inversion of xattn"),
        safe_open(path, framework="pt") as file,
    ):
        header = opened(file.metadata(), path)
        check(header.get("kind") == KIND, path, "it holds a recording, not an inversion")
        names = set(header["sums"])
        check(names == set(file.keys()), path, "its tensors are not those of its header")
        tensors = {name: file.get_tensor(name) for name in names}
        for name, tensor in tensors.items():
            check(header["sums"][name] == checksum(raw_bytes(tensor)), path, f"{name} has changed")
        timesteps = tuple(map(float, header["timesteps"]))
        shape = tuple(tensors["pivots"].shape)
        check(len(shape) == 5 and shape[0] == len(timesteps) + 1, path, f"pivots {shape}")
        pictures = {
            name: image_of(tensors[name].numpy().tobytes())
            for name in ("photo", "reconstruction", "replay") if name in tensors
        }  # fmt: skip
        scale = header["guidance_scale"]
        return Inversion(
            prompt=str(header["prompt"]),
            method=str(header["method"]),
            pivots=tensors["pivots"],
            timesteps=timesteps,
            guidance_scale=None if scale is None else float(scale),
            maker=Maker.from_json(header["maker"]),
            photo=pictures["photo"],
            reconstruction=pictures["reconstruction"],
            extra=tensors.get("extra"),
            replay=pictures.get("replay"),
            calls=int(header["calls"]),
        )
