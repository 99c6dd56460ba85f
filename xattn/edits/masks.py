"""LocalBlend: a mask from maps, applied to latents between steps (Hertz et al. 2022, section 4).

Pure functions. The maps are attention probabilities in effect at the middle resolution, summed
over the steps so far, averaged over layers and heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.edits.tokens import Places, Positions


def word_mask(maps: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """Return where words act: above a share of their maps' maximum.

    Sum over the tokens, 3 x 3 maximum, nearest to the latent grid, divide by the maximum.

    Args:
        maps: (..., tokens, h, w), not negative; zero tokens return an empty mask.
        grid: (height, width) of the latents.
        threshold: share of the maximum to exceed, in [0, 1).

    Returns:
        bool (..., height, width).
    """
    lead = maps.shape[:-3]
    heat = maps.sum(-3).reshape(-1, 1, *maps.shape[-2:])  # (n, 1, h, w)
    heat = F.max_pool2d(heat, 3, stride=1, padding=1)
    heat = F.interpolate(heat, size=grid, mode="nearest")  # (n, 1, height, width)
    top = heat.amax((-2, -1), keepdim=True)
    return (heat > threshold * top).reshape(*lead, *grid)


def pair_mask(
    source: Tensor, target: Tensor, places: Places, grid: tuple[int, int], threshold: float
) -> Tensor:
    """Return the mask of an edited image: the union of both prompts' words, minus exclusions.

    Args:
        source: maps of the source, (images, tokens, h, w).
        target: maps of the sibling, (images, tokens, h, w).
        places: the tokens that count.
        grid: (height, width) of the latents.
        threshold: as for ``word_mask``.

    Returns:
        bool (images, height, width).
    """
    inside = _union(source, target, places.source, places.target, grid, threshold)
    return inside & ~left_out(source, target, places, grid, threshold)


def left_out(
    source: Tensor, target: Tensor, places: Places, grid: tuple[int, int], threshold: float
) -> Tensor:
    """Return where the subtracted words act, in either prompt; bool (images, height, width)."""
    return _union(source, target, places.source_less, places.target_less, grid, threshold)


def _union(
    source: Tensor,
    target: Tensor,
    here: Positions,
    there: Positions,
    grid: tuple[int, int],
    threshold: float,
) -> Tensor:
    one = word_mask(_of(source, here), grid, threshold)
    return one | word_mask(_of(target, there), grid, threshold)


def _of(maps: Tensor, tokens: Positions) -> Tensor:
    """Return the maps of some tokens, without copying positions already on the maps' device."""
    return maps.index_select(1, torch.as_tensor(tokens, dtype=torch.long, device=maps.device))


def narrowed(mask: Tensor, latents: Tensor, source: Tensor, share: float) -> Tensor:
    """Return a mask without the cells that an edit left almost as they were.

    A cell stays in if it, or one of the eight around it, changed by more than a share of the
    largest change inside the mask, by the root mean square over channels. Attention is spread
    wider than what an edit changes; LEDITS++ (Brack et al. 2024) meets attention with a quantile
    of the predictions' difference to the same end.

    Args:
        mask: bool (images, height, width).
        latents: the edited images, (images, channels, height, width).
        source: the source's, of the same shape.
        share: in [0, 1); 0 returns the mask.
    """
    if not share:
        return mask
    change = (latents.float() - source.float()).square().mean(1).sqrt()  # (images, height, width)
    change = torch.where(mask.to(change.device), change, torch.zeros_like(change))
    most = change.amax((-2, -1), keepdim=True)
    near = F.max_pool2d(change[:, None], 3, stride=1, padding=1)[:, 0]
    return mask & (near > share * most).to(mask.device)


def fit_mask(mask: Tensor, latent: tuple[int, int], scale: int) -> Tensor:
    """Fit a user's mask to the latent grid.

    A latent counts if the mask covers any of its pixels, so nothing is cropped.

    Args:
        mask: (height, width), bool or in [0, 1].
        latent: (height, width) of the latents.
        scale: pixels per latent.

    Raises:
        ValueError: it matches neither the image's size nor the latents'.
    """
    pixels = (latent[0] * scale, latent[1] * scale)
    if tuple(mask.shape) == latent:
        return mask
    if tuple(mask.shape) != pixels:
        raise ValueError(
            f"mask is {mask.shape[0]} x {mask.shape[1]} (height x width); this run needs the "
            f"image's {pixels[0]} x {pixels[1]} or the latents' {latent[0]} x {latent[1]}"
        )
    fitted = F.max_pool2d(mask[None].float(), scale)[0]
    return fitted.bool() if mask.dtype == torch.bool else fitted


def blended(latents: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Return the latents inside the mask and the source's outside.

    Args:
        latents: (images, channels, height, width).
        source: of the same shape.
        mask: (images, height, width) or (height, width); bool, or soft in [0, 1].
    """
    mask = mask.to(latents.device)
    mask = mask[..., None, :, :]  # (..., 1, height, width)
    if mask.dtype == torch.bool:
        return torch.where(mask, latents, source)  # exact on both sides
    return source + mask.to(latents.dtype) * (latents - source)


def unpacked(latents: Tensor, latent: tuple[int, int]) -> Tensor:
    """Return packed latents on their grid (FLUX packs 2 x 2 into the channels of one position).

    Args:
        latents: (images, positions, channels x patch x patch).
        latent: (height, width) of the latents.

    Returns:
        (images, channels, height, width)
    """
    height, width = latent
    patch = math.isqrt(height * width // latents.shape[1])
    grid = latents.unflatten(1, (height // patch, width // patch))
    grid = grid.unflatten(-1, (-1, patch, patch))  # (images, h, w, channels, patch, patch)
    whole: Tensor = grid.permute(0, 3, 1, 4, 2, 5).reshape(len(latents), -1, height, width)
    return whole


def packed(latents: Tensor, positions: int) -> Tensor:
    """Return latents packed into as many positions: the inverse of ``unpacked``."""
    height, width = latents.shape[-2:]
    patch = math.isqrt(height * width // positions)
    grid = latents.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    # (images, channels, h, patch, w, patch) -> (images, h, w, channels, patch, patch)
    flat: Tensor = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return flat
