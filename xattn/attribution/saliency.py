"""``saliency(pipe, trace, "red")``: which places of the picture carry a word's score.

The score is the squared change of the clean estimate without the word, as in occlusion. By patches,
a square of the picture's latents is replaced by their mean, and a place counts by what the score
loses (Zeiler & Fergus 2014); by gradient, by the size of the score's gradient at the noised latents
(Simonyan et al. 2014).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xattn.api.invert import encoded
from xattn.attribution.attribute import askable, picture_of
from xattn.attribution.players import players_of
from xattn.attribution.states import States
from xattn.attribution.store import Answers
from xattn.attribution.texts import Texts, of_rows
from xattn.models import family_of_pipeline
from xattn.models.probing import Probed
from xattn.results.difference import Difference
from xattn.results.trace import Trace


def saliency(
    pipe: Any,
    trace: Trace,
    word: str,
    *,
    by: str = "patches",
    image: int = 0,
    patch: int | None = None,
    level: float = 0.7,
    absent: str = "removed",
    seed: int = 0,
    batch: int = 16,
    cache: str | os.PathLike[str] | None = None,
) -> Difference:
    """Return which places of a picture carry a word's score.

    Args:
        pipe: a pipeline of Stable Diffusion 1, 2, XL, 3, or FLUX.1.
        trace: of ``probe`` or ``record``, with its picture.
        word: a word or phrase of its prompt.
        by: "patches", two rows of the denoiser for each patch; or "gradient", one backward pass.
        image: index of the trace's image.
        patch: side of a patch in latents; an eighth of the shorter side by default.
        level: share of the noise schedule.
        absent: as for ``attribute``.
        seed: of the noise.
        batch: rows of one call.
        cache: a folder that keeps each patch's score, so that what was interrupted goes on.

    Returns:
        By patches, signed: above 0 where the score falls without the place; by gradient the
        gradient's size. ``.overlay()`` draws it with its colour bar.

    Raises:
        TypeError: the model can't be asked at a level.
        ValueError: an option is out of its range, or the word is not in the prompt.

    Example:
        >>> trace = xattn.probe(pipe, photo, "a red car")
        >>> xattn.saliency(pipe, trace, "red").overlay().save("red.png")
    """
    if by not in ("patches", "gradient"):
        raise ValueError(f"by={by!r} must be 'patches' or 'gradient'")
    probed, prompt = askable(pipe), trace.run.prompt(trace._index(image))
    picture = picture_of(trace, image)
    texts = Texts(pipe, family_of_pipeline(pipe), prompt, players_of(prompt, word), absent)
    clean = encoded(pipe, picture)
    score = _Score(probed, texts, level, batch)
    if by == "gradient":
        state = States.noised(pipe.scheduler, probed, clean, (level,), seed=seed)
        found = score.gradient(state.latents)
    else:
        side = patch or max(1, min(clean.shape[-2:]) // 8)
        store = None if cache is None else Answers(cache)
        with torch.no_grad():
            whole = score.at(pipe, clean, clean, seed)
        if store is not None:  # another model gives the whole picture another score
            store.open("saliency", prompt.text, word, absent, level, seed, side, clean, whole)
        found = whole - _by_patches(score, pipe, clean, side, seed, store)
    pipe.maybe_free_model_hooks()
    return Difference(found.cpu().numpy().astype(np.float32), word, picture)


class _Score:
    """A word's score at noised latents."""

    def __init__(self, probed: Probed, texts: Texts, level: float, batch: int) -> None:
        self.probed, self.texts, self.level, self.batch = probed, texts, level, batch
        self.without = texts.encoded(torch.zeros(1, len(texts.players), dtype=torch.bool))

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the score of each of some noised latents, (rows,)."""
        both = [self._estimate(latents, each) for each in (self.texts.full, self.without)]
        return ((both[0] - both[1]) ** 2).mean((1, 2, 3))

    def at(self, pipe: Any, pictures: Tensor, clean: Tensor, seed: int) -> Tensor:
        """Return the score of each of some pictures, noised, (rows,)."""
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
        return self(self.probed.noised(pipe.scheduler, pictures, noise, self.level)).cpu()

    def gradient(self, latents: Tensor) -> Tensor:
        """Return the size of the score's gradient at each cell, (height, width)."""
        with torch.enable_grad():
            given = latents.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self(given).sum(), given)
        size: Tensor = torch.linalg.vector_norm(slope[0], dim=0)
        return size

    def _estimate(self, latents: Tensor, encoded: tuple[Any, ...]) -> Tensor:
        pipe = self.texts.pipe
        timestep = self.probed.level_timestep(pipe.scheduler, self.level)
        given = latents.to(encoded[0].device, encoded[0].dtype)
        output = self.probed.denoise(pipe, given, timestep, of_rows(encoded, len(given)))
        return self.probed.estimate(pipe.scheduler, given, output, self.level)


@torch.no_grad()
def _by_patches(
    score: _Score, pipe: Any, clean: Tensor, side: int, seed: int, store: Answers | None
) -> Tensor:
    """Return the score without the patch of each place, (height, width)."""
    height, width = clean.shape[-2:]
    corners = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
    grey, found = clean.mean((-2, -1), keepdim=True), torch.zeros(height, width)
    with pipe.progress_bar(total=2 * len(corners)) as bar:
        for start in range(0, len(corners), score.batch):
            some = corners[start : start + score.batch]
            name = f"patches-{start}-{len(some)}"
            values = None if store is None else store.read(name)
            if values is None:
                rows = clean.repeat(len(some), 1, 1, 1)
                for row, (y, x) in zip(rows, some, strict=True):
                    row[:, y : y + side, x : x + side] = grey[0]
                values = score.at(pipe, rows, clean, seed)
                if store is not None:
                    store.write(name, values)
            for (y, x), value in zip(some, values, strict=True):
                found[y : y + side, x : x + side] = value
            bar.update(2 * len(some))
    return found
