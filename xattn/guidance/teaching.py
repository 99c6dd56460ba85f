"""Losses that teach a denoiser where words belong, from masks (TokenCompose)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xattn.instruments.live import LiveMaps
from xattn.text.prompt import Words

Masks = Mapping[Words, Any]
"""For each word its mask, (height, width) for every image, or (images, height, width)."""


class SupervisedMaps(LiveMaps):
    """Live maps, and TokenCompose's losses of them against masks (Wang et al. 2024).

    A mask is resized to each layer's grid; the losses are means over layers, images and words.
    """

    def token_loss(self, masks: Masks) -> Tensor:
        """Return the mean of (1 - share of the map's mass inside of the mask)² (equation 2).

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
        """Return the mean binary cross-entropy of map and mask (equation 3), in nats.

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
        if not masks:
            raise ValueError("masks= must hold a mask for at least one word")
        images, found = self.images, []
        for word, given in masks.items():
            whole = torch.as_tensor(given).float()
            if whole.ndim == 2:
                whole = whole.expand(images, *whole.shape)
            if whole.ndim != 3 or len(whole) != images or whole.min() < 0 or whole.max() > 1:
                raise ValueError(
                    f"the mask of {word!r} is {tuple(whole.shape)}; expected (height, width), or "
                    f"({images}, height, width), with values from 0 to 1"
                )
            for image in range(images):
                for heat in self.layers(word, image).values():
                    mask = F.interpolate(whole[image][None, None], size=heat.shape, mode="area")
                    found.append((heat, mask[0, 0].to(heat)))
        return found


def _log(share: Tensor) -> Tensor:
    return share.clamp_min(1e-6).log()
