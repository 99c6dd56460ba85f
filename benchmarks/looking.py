"""What the judge sees in pictures: the largest object, and how far two pictures are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.judge import CLASSES, Judge, nearest, to_pixels
from xattn.toyland.world import COLOURS, PALETTE

HALO = 4  # pixels around an object smeared by the autoencoder, counted as part of the object

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """The largest object of a picture: its class, colour and place."""

    noun: str
    colour: str
    mask: Mask
    ground: Mask


@torch.no_grad()
def look(judge: Judge, images: Sequence[Image.Image]) -> list[Found | None]:
    """Find the largest object of each picture."""
    labels = judge(to_pixels(images)).argmax(1).numpy()
    labels = labels.repeat(2, axis=1).repeat(2, axis=2)  # (images, height, width)
    return [
        _largest(np.asarray(i.convert("RGB")), one) for i, one in zip(images, labels, strict=True)
    ]


def _largest(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> Found | None:
    blobs, count = ndimage.label(labels > 1)
    sizes = [(int((blobs == n).sum()), n) for n in range(1, count + 1)]
    if not sizes or max(sizes)[0] < 100:
        return None
    mask = blobs == max(sizes)[1]
    noun = CLASSES[int(np.bincount(labels[mask]).argmax())]
    core = ndimage.binary_erosion(mask, iterations=2)
    tones = {name: PALETTE[name] for name in COLOURS}
    colour = nearest(pixels[core if core.sum() > 40 else mask], tones)
    return Found(noun, colour, mask, labels == 1)


def psnr(one: Image.Image, two: Image.Image, where: Mask) -> float:
    """Return the peak signal-to-noise ratio inside a mask, in dB; at most 60."""
    difference = np.asarray(one, dtype=float)[where] - np.asarray(two, dtype=float)[where]
    error = float(np.square(difference).mean())
    return min(60.0, float(10 * np.log10(255**2 / max(error, 1e-9))))


def outside(*masks: Mask) -> Mask:
    """Return the mask outside some masks and the halo around them."""
    return ~ndimage.binary_dilation(np.logical_or.reduce(masks), iterations=HALO)


def strength(image: Image.Image, where: Mask, colour: str) -> float:
    """Return a region's strength of a colour: its mean along the colour's direction from grey.

    1 is the palette's own colour, 0 is grey, below 0 is its complement.
    """
    aim = np.array(PALETTE[colour], dtype=float)
    aim -= aim.mean()
    mean = np.asarray(image.convert("RGB"), dtype=float)[where].mean(0)
    return float((mean - mean.mean()) @ aim / (aim @ aim))


def saturation(image: Image.Image, where: Mask) -> float:
    """Return the mean saturation of a region, in [0, 1]."""
    return float(np.asarray(image.convert("HSV"), dtype=float)[where][:, 1].mean() / 255)


def iou(one: Mask, two: Mask) -> float:
    return float((one & two).sum() / max((one | two).sum(), 1))
