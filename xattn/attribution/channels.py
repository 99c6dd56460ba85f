"""Network dissection of a layer's channels (Bau et al. 2017, section 2).

A channel is a unit: its activations over the picture, above a threshold, against the masks of each
concept; intersections and unions are summed over all pictures. Unlike a head's map of a word it is
of no word, so that every picture counts for every concept, those without it as empty masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from xattn.api.probe import probe
from xattn.attribution.marked import Marked
from xattn.instruments.channels import chosen_modules, watched
from xattn.models import family_of_pipeline
from xattn.models.sizes import denoiser_of

Array = NDArray[Any]


class Channel(NamedTuple):
    """A channel of a module's output."""

    layer: str
    channel: int


def text_modules(pipe: Any) -> list[str]:
    """Return the names of the modules that attend to text alone or to text and image."""
    family = family_of_pipeline(pipe)
    return [layer.name for layer in family.layers(denoiser_of(pipe)) if layer.reads_text]


def activations(
    pipe: Any,
    pictures: Sequence[Marked],
    layers: str | Sequence[str],
    *,
    levels: Sequence[float],
    batch: int,
    seed: int,
) -> tuple[dict[str, list[Tensor]], list[tuple[int, int]]]:
    """Return each module's activations of every picture, the mean over levels.

    Returns:
        By module (channels, height, width) of each picture, float32; and (height, width) of each
        picture's latents.

    Raises:
        ValueError: a name does not match any module, or an output is not one of the image's.
    """
    modules = chosen_modules(denoiser_of(pipe), layers)
    found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(pictures) for name in modules}
    latents: list[tuple[int, int]] = [(0, 0)] * len(pictures)
    for group in _of_one_size(pictures, batch):
        sums: dict[str, Tensor] = {}

        def receive(name: str, output: Tensor, sums: dict[str, Tensor] = sums) -> None:
            sums[name] = output.float().cpu() + sums.get(name, 0)

        with watched(modules, receive):
            trace = probe(
                pipe, [pictures[i].image for i in group], [pictures[i].prompt for i in group],
                levels=levels, seed=[seed + i for i in group], batch=batch, keep=(),
            )  # fmt: skip
        for name in modules:
            maps = on_plane(name, sums[name] / len(levels), trace.run.latent)
            for row, i in enumerate(group):
                found[name][i], latents[i] = maps[row], trace.run.latent
    return found, latents


def _of_one_size(pictures: Sequence[Marked], batch: int) -> list[list[int]]:
    """Return indices of pictures that pass together: a probe passes each size by itself."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for i, picture in enumerate(pictures):
        sizes.setdefault(picture.image.size, []).append(i)
    return [own[n : n + batch] for own in sizes.values() for n in range(0, len(own), batch)]


def on_plane(name: str, output: Tensor, latent: tuple[int, int]) -> Tensor:
    """Return (rows, channels, height, width) of a module's output, whose places are the latents'.

    Raises:
        ValueError: its places are not those of the image.
    """
    if output.ndim == 4:
        return output
    places = output.shape[1]
    sides = [tuple(-(-side // d) for side in latent) for d in range(1, max(latent) + 1)]
    sides += [tuple(side // d for side in latent) for d in range(1, min(latent) + 1)]
    grid = next((each for each in sides if each[0] * each[1] == places), None)
    if grid is None:
        raise ValueError(
            f"layers: {name} has {places} places, which is not a grid of {latent[0]} by "
            f"{latent[1]} latents, whole or divided; choose other modules with layers="
        )
    found: Tensor = output.transpose(1, 2).unflatten(-1, grid)
    return found


def channel_ious(
    maps: Sequence[Tensor], masks: Mapping[str, Sequence[Array]], share: float | None
) -> Array:
    """Return (channels, concepts) IoUs of a module's channels.

    Args:
        maps: (channels, height, width) of each picture.
        masks: by concept bool (height, width) of each picture, to which activations are brought
            (bilinear, as in the paper).
        share: the share of cells above a channel's threshold, over all pictures; None for cells
            above twice the mean of each map's absolute values.
    """
    sizes = [mask.shape for mask in next(iter(masks.values()))]
    planes = [
        F.interpolate(each[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
        for each, size in zip(maps, sizes, strict=True)
    ]
    limit = None if share is None else _quantiles(planes, share)
    above = [
        plane > (2 * np.abs(plane).mean((1, 2)) if limit is None else limit)[:, None, None]
        for plane in planes
    ]
    found = np.zeros((len(maps[0]), len(masks)))
    for c, own in enumerate(masks.values()):
        pairs = list(zip(above, own, strict=True))
        both = sum((high & mask).sum((1, 2)) for high, mask in pairs)
        either = sum((high | mask).sum((1, 2)) for high, mask in pairs)
        found[:, c] = both / np.maximum(either, 1)
    return found


def _quantiles(planes: Sequence[Array], share: float) -> Array:
    """Return the value of each channel that a share of its cells, over all pictures, is above."""
    channels = range(len(planes[0]))
    rows = (np.concatenate([plane[c].ravel() for plane in planes]) for c in channels)
    return np.array([np.quantile(row, 1 - share) for row in rows])
