"""Pictures compared, and edited places put back into the picture they came from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps


@dataclass(frozen=True)
class Fidelity:
    """How much of a photograph the unedited source keeps, in dB of PSNR; infinite if equal.

    Attributes:
        to_reconstruction: to what the autoencoder makes of the photograph.
        to_photo: to the photograph, as resized for the model.
        ceiling: of the autoencoder's reconstruction to the photograph: the most to be had.
    """

    to_reconstruction: float
    to_photo: float
    ceiling: float

    def __str__(self) -> str:
        return (
            f"{self.to_reconstruction:.1f} dB to the autoencoder's reconstruction, "
            f"{self.to_photo:.1f} dB to the photo (at most {self.ceiling:.1f})"
        )


def fidelity(source: Image.Image, reconstruction: Image.Image, photo: Image.Image) -> Fidelity:
    """Return how much of a photograph a source keeps."""
    return Fidelity(psnr(source, reconstruction), psnr(source, photo), psnr(reconstruction, photo))


def psnr(one: Image.Image, two: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB pictures of one size, in dB."""
    first, second = (np.asarray(each.convert("RGB"), dtype=np.float64) for each in (one, two))
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def as_mask(given: Any) -> npt.NDArray[np.bool_]:
    """Return a mask (height, width) as bool: where numbers or a picture's brightness are above 0.

    Raises:
        ValueError: it has another shape.
    """
    given = given.convert("L") if hasattr(given, "convert") else given
    found = np.asarray(given)
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(f"mask must have the shape (height, width), got {found.shape}")
    return found > 0


def feathered(mask: npt.NDArray[np.bool_], size: tuple[int, int], feather: float) -> Image.Image:
    """Return a mask resized to (width, height), all of it inside, fading out over its edge.

    Args:
        mask: (height, width), on any grid.
        size: of the picture.
        feather: width of the edge, in cells of the mask's grid.

    Returns:
        Mode L: 255 in the mask's cells, 0 further than ``feather`` cells from them.
    """
    cell = max(size[0] / mask.shape[1], size[1] / mask.shape[0])
    reach = max(0, round(feather * cell / 2))
    drawn = Image.fromarray((255 * mask).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    if reach == 0:
        return drawn
    grown = _grown(_grown(np.asarray(drawn) > 0, reach, 0), reach, 1)
    return Image.fromarray((255 * grown).astype(np.uint8)).filter(ImageFilter.BoxBlur(reach))


def _grown(mask: npt.NDArray[np.bool_], reach: int, axis: int) -> npt.NDArray[np.bool_]:
    """Return a mask grown by some pixels both ways along an axis.

    Running sums: Pillow's large maxima take the square of the reach, too long for a photograph.
    """
    size = mask.shape[axis]
    widths = [(reach + 1, reach) if each == axis else (0, 0) for each in (0, 1)]
    sums = np.pad(mask, widths).cumsum(axis, dtype=np.int32)
    last = sums.take(range(2 * reach + 1, 2 * reach + 1 + size), axis)
    found: npt.NDArray[np.bool_] = last > sums.take(range(size), axis)
    return found


def pasted(
    original: Image.Image,
    edited: Image.Image,
    mask: npt.NDArray[np.bool_],
    feather: float = 1.0,
) -> Image.Image:
    """Return a picture with the edited places in it; the rest stays bit for bit.

    Args:
        original: of any size and mode; turned upright by its EXIF orientation.
        edited: of any size; resized to the original's.
        mask: (height, width) on any grid: the places to take from the edited picture.
        feather: width of the soft edge around them, in cells of the mask's grid.

    Returns:
        RGB, or RGBA where the original is transparent somewhere: its transparency stays.
    """
    upright = ImageOps.exif_transpose(original)
    clear = upright.has_transparency_data
    base = upright.convert("RGBA" if clear else "RGB")
    alpha = feathered(mask, base.size, feather)
    box = alpha.getbbox()
    if box is None:
        return base
    large = edited.convert("RGB").resize(base.size, Image.Resampling.LANCZOS)
    merged = Image.composite(large, base.convert("RGB"), alpha)
    if clear:
        merged.putalpha(base.getchannel("A"))
    return merged
