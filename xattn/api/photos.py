"""Pictures from outside: files, folders and PIL images of every mode, fitted to a model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from xattn.models import family_of_pipeline
from xattn.models.sizes import denoiser_of, usual_size

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the files that are read of a folder."""

Pictures = str | os.PathLike[str] | Image.Image | Sequence[Any]


@dataclass(frozen=True)
class Photo:
    """A picture in RGB, and where it came from.

    Attributes:
        image: upright, RGB, 8 bits.
        name: its file's name, or "a picture".
        given: its (width, height) before it was fitted to a model.
        original: upright, at its own size, and RGBA where it is transparent somewhere.
    """

    image: Image.Image
    name: str
    given: tuple[int, int]
    original: Image.Image

    def __str__(self) -> str:
        (width, height), (before, tall) = self.image.size, self.given
        if self.image.size == self.given:
            return f"{self.name}, {width}x{height}"
        return f"{self.name}, {before}x{tall} taken as {width}x{height}"


def photos(given: Pictures) -> list[Photo]:
    """Read a picture, a list of pictures, or a folder's pictures in the order of their names.

    Raises:
        TypeError: something is neither a picture nor a path.
        ValueError: there is no picture, or a file can't be read as one.
    """
    if isinstance(given, str | os.PathLike):
        path = Path(given).expanduser()
        if not path.exists():
            raise ValueError(f"image={os.fspath(given)!r}: there is no such file or folder")
        if not path.is_dir():
            return [_photo(path)]
        found = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS)
        if not found:
            endings = ", ".join(ENDINGS)
            raise ValueError(f"image={os.fspath(given)!r} has no pictures ({endings})")
        return [_photo(each) for each in found]
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ValueError("image=[] has no picture; give a picture, a path, or a list of them")
    return [_photo(each) for each in several]


def _photo(source: Any) -> Photo:
    if isinstance(source, Image.Image):
        return _upright(source, "a picture")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"image must be a PIL image, a path, or a list of them, not {type(source).__name__}"
        )
    try:
        with Image.open(Path(source).expanduser()) as opened:
            return _upright(opened, Path(source).name)
    except ValueError:
        raise
    except Exception as error:  # every format has its own way to be damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"image={os.fspath(source)!r} can't be read as a picture: {reason}"
        ) from error


def _upright(image: Image.Image, name: str) -> Photo:
    flat = rgb(image)
    clear = image.has_transparency_data and image.mode[0] not in "IF"
    original = ImageOps.exif_transpose(image).convert("RGBA") if clear else flat
    return Photo(flat, name, flat.size, original)


def rgb(image: Image.Image) -> Image.Image:
    """Return a picture of any mode upright, on white where it is transparent, in RGB.

    Greys of 16 bits are taken over their whole range, those in floating point over [0, 1].
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] in "IF":
        values = np.asarray(upright, dtype=np.float64) / (1 if upright.mode == "F" else 65535)
        values = np.nan_to_num(values).clip(0, 1)
        return Image.fromarray((255 * values).round().astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return upright.convert("RGB")


# -- sizes


@dataclass(frozen=True)
class Room:
    """The sizes of pictures that a model takes.

    Attributes:
        area: pixels of the pictures that it was made for.
        unit: what both sides are a multiple of.
    """

    area: int
    unit: int

    @classmethod
    def of(cls, pipe: Any) -> Room:
        """Return a pipeline's room: its default size, and a whole cell of its coarsest grid."""
        height, width = usual_size(pipe)
        layers = family_of_pipeline(pipe).layers(denoiser_of(pipe))
        cells = [math.lcm(layer.patch, 2**layer.depth) for layer in layers]
        scale = int(getattr(pipe, "vae_scale_factor", 8))
        return cls(height * width, scale * math.lcm(*cells))

    def takes(self, size: tuple[int, int]) -> bool:
        """Return whether a size is taken as it is: whole cells, half to twice the area."""
        whole = not any(side % self.unit for side in size)
        return whole and self.area / 2 <= size[0] * size[1] <= 2 * self.area

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that a picture is resized to.

        A size that the model takes stays. Any other is scaled to the model's own area, and each
        side rounded to a whole number of cells, at least one.
        """
        if self.takes(size):
            return size
        scale = math.sqrt(self.area / (size[0] * size[1]))
        width, height = (max(1, round(side * scale / self.unit)) * self.unit for side in size)
        return width, height

    def sized(self, given: tuple[int, int], size: tuple[int, int] | None) -> tuple[int, int]:
        """Return the (width, height) that a picture of size ``given`` is resized to.

        Args:
            given: its own (width, height).
            size: the (height, width) asked for, or None for what fits.

        Raises:
            ValueError: the size asked for is not whole cells.
        """
        if size is None:
            return self.fitted(given)
        height, width = size
        if min(size) < 1 or height % self.unit or width % self.unit:
            raise ValueError(
                f"size={size!r}: height and width must be multiples of {self.unit} for this model"
            )
        return width, height


def fitted(photo: Photo, size: tuple[int, int]) -> Photo:
    """Return a photo resized to (width, height), by Lanczos; unchanged at its own size."""
    if photo.image.size == size:
        return photo
    image = photo.image.resize(size, Image.Resampling.LANCZOS)
    return replace(photo, image=image)
