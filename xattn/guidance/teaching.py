"""Losses that teach a denoiser where words belong, from masks (TokenCompose)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.instruments.live import LiveMaps
from xattn.text.prompt import Words

WordMasks = Mapping[Words, Any]
Masks = WordMasks | Sequence[WordMasks]
"""For each word its mask, (height, width) for every image, or (images, height, width). Where the
images' captions differ: a mapping for each image, of its own words."""


class SupervisedMaps(LiveMaps):
    """Live maps, and TokenCompose's losses of them against masks (Wang et al. 2024).

    A mask is resized to each layer's grid; the losses are means over layers, images and words. A
    word's map is the mean over heads and its tokens. The authors' code differs where a word has
    several tokens, and takes the pixel loss of the mean over the layers of one grid.
    """

    def token_loss(self, masks: Masks) -> Tensor:
        """Return the mean of (1 - share of the map's mass inside of the mask)².

        Raises:
            RuntimeError: the denoiser was not called yet.
            ValueError: a mask does not fit the images.
            WordError: a word is missing in an image's prompt, or none of the words to keep.
        """
        losses = []
        for heat, mask in self._pairs(masks):
            inside = (heat * mask).sum() / heat.sum().clamp_min(1e-12)
            losses.append((1 - inside) ** 2)
        return torch.stack(losses).mean()

    def pixel_loss(self, masks: Masks) -> Tensor:
        """Return the mean binary cross-entropy of map and mask, in nats.

        Raises:
            RuntimeError: the denoiser was not called yet.
            ValueError: a mask does not fit the images.
            WordError: a word is missing in an image's prompt, or none of the words to keep.
        """
        losses = [
            -(mask * _log(heat) + (1 - mask) * _log(1 - heat)).mean()
            for heat, mask in self._pairs(masks)
        ]
        return torch.stack(losses).mean()

    def _pairs(self, masks: Masks) -> list[tuple[Tensor, Tensor]]:
        """Return each map (height, width) of a layer, image and word, with its mask."""
        images, found = self.images, []
        if not isinstance(masks, Mapping) and len(masks) != images:
            raise ValueError(f"masks= has {len(masks)} mappings for {images} images")
        for image in range(images):
            own = masks if isinstance(masks, Mapping) else masks[image]
            for word, given in own.items():
                whole = _mask_of(word, given, image, images)
                for heat in self.layers(word, image).values():
                    mask = F.interpolate(whole[None, None], size=heat.shape, mode="area")
                    found.append((heat, mask[0, 0].to(heat)))
        if not found:
            raise ValueError("masks= must hold a mask for at least one word")
        return found


def _mask_of(word: Words, given: Any, image: int, images: int) -> Tensor:
    """Return a word's mask in one image, float32 (height, width)."""
    whole = torch.as_tensor(given).float()
    shared = whole.ndim == 2
    fits = shared or (whole.ndim == 3 and len(whole) == images)
    if not fits or whole.min() < 0 or whole.max() > 1:
        raise ValueError(
            f"the mask of {word!r} is {tuple(whole.shape)}; expected (height, width), or "
            f"({images}, height, width), with values from 0 to 1"
        )
    return whole if shared else whole[image]


def _log(share: Tensor) -> Tensor:
    return share.clamp_min(1e-6).log()
