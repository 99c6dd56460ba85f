"""Whether a word is in a picture, by how it helps the denoiser.

At a level, r is what the denoiser misses of the clean picture without any text, and d_w what the
text w alone changes in its estimate. A word that is there changes it towards the picture (the
denoising error as a classifier: Li et al. 2023, section 3). Words are compared with one another:
what several of them change alike is divided among them by least squares.

Every product is divided by r . r of its level, so levels weigh alike and no unit is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_RIDGE = 0.1  # of 0.03, 0.1, 0.3, 1; chosen on scenes that no figure is reported of
_TINY = 1e-12
FEATURES = ("joint", "gain", "size", "angle")


def products(clean: Tensor, plain: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """Return (words, words) products d . d and (words,) products d . r, relative to r . r.

    Args:
        clean: the picture's clean latents, (channels, height, width).
        plain: the denoiser's estimate of them without a text.
        told: its estimates with each word alone, (words, channels, height, width).
    """
    missed = (clean - plain).flatten().double()
    changes = (told - plain).flatten(1).double()
    scale = (missed @ missed).clamp_min(_TINY)
    return changes @ changes.T / scale, changes @ missed / scale


def features(grams: Tensor, alongs: Tensor, words: Sequence[int] | None = None) -> Tensor:
    """Return what tells of each word's presence, (words, features) in the order of FEATURES.

    joint: the share of its change that the picture asks for, among all words (least squares with
    a small ridge); gain: the relative drop of the denoising error; size: the logarithm of its
    change's size, less the words' mean; angle: the cosine of its change with what was missing,
    both less the words' mean.

    Args:
        grams: d . d of each level and noise, (levels, words, words).
        alongs: d . r, (levels, words).
        words: only these words are compared; all by default.
    """
    if words is not None:
        index = torch.as_tensor(list(words))
        grams, alongs = grams[:, index][:, :, index], alongs[:, index]
    own = grams.diagonal(dim1=1, dim2=2).clamp_min(_TINY)  # (levels, words)
    gain = (2 * alongs - own).mean(0)
    size = 0.5 * own.log().mean(0)
    return torch.stack([joint(grams, alongs), gain, size - size.mean(), _angle(grams, alongs)], 1)


def joint(grams: Tensor, alongs: Tensor) -> Tensor:
    """Return each word's coefficient in the least squares over all levels, (words,)."""
    gram, along = grams.mean(0), alongs.mean(0)
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(_TINY)
    held = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    found: Tensor = torch.linalg.solve(held, along)
    return found


def _angle(grams: Tensor, alongs: Tensor) -> Tensor:
    """Return the mean over levels of the cosines of the centred changes with what was missed."""
    rows = grams - grams.mean(1, keepdim=True)
    own = (rows - rows.mean(2, keepdim=True)).diagonal(dim1=1, dim2=2)
    return ((alongs - alongs.mean(1, keepdim=True)) / own.clamp_min(_TINY).sqrt()).mean(0)
