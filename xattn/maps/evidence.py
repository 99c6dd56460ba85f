"""Maps of concepts, raised where the concept helps the denoiser.

A map of attention says where a word would be read. Where a text's estimate comes nearer to the
given picture than that without a text, it also says something true there: the gain of a cell is
how much the squared error falls in it (the denoising error as a classifier, Li et al. 2023,
section 3, cell by cell).
"""

from __future__ import annotations

from torch import Tensor

from xattn.maps.blur import blurred

_TINY = 1e-12
_SPREAD = 1 / 16  # of the grid's longer side; chosen on scenes that no figure is reported of


def gains(clean: Tensor, plain: Tensor, told: Tensor) -> Tensor:
    """Return each text's fall of the squared error in each cell, (words, height, width).

    Divided by the whole squared error without a text, so levels weigh alike; negative where the
    text leads away from the picture.

    Args:
        clean: the picture's clean latents, (channels, height, width).
        plain: the denoiser's estimate of them without a text.
        told: its estimates with each word alone, (words, channels, height, width).
    """
    missed, change = (clean - plain).double(), (told - plain).double()
    fall = (2 * change * missed - change**2).sum(1)
    return (fall / (missed**2).sum().clamp_min(_TINY)).float()


def raised(maps: Tensor, gain: Tensor) -> Tensor:
    """Return maps times one and the share of the concept's largest gain, each with maximum 1 first.

    Args:
        maps: of concepts, (concepts, height, width), nowhere negative.
        gain: of the same concepts on the same grid; what is below zero counts as zero.
    """
    own = maps / maps.amax((-2, -1), keepdim=True).clamp_min(_TINY)
    found = blurred(gain, _SPREAD * max(gain.shape[-2:])).clamp_min(0)
    return own * (1 + found / found.amax((-2, -1), keepdim=True).clamp_min(_TINY))
