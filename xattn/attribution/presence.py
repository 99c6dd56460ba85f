"""Presence of a concept in a clean estimate, as a target of attribution.

The estimate is noised to some levels, and the denoiser asked for it with the concept's text and
with none: the share of the denoising error that the text takes away, the mean over levels (the
error as a classifier: Li et al. 2023, section 3). 0 where the text doesn't help.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.api.concepts import encode_prompts
from xattn.attribution.texts import of_rows
from xattn.models import family_of_pipeline
from xattn.models.probing import encoded_pictures, probed_family
from xattn.text.matching import words

LEVELS = (0.7, 0.5, 0.3)
ROWS = 8


class Presence:
    """How much a concept's text helps the denoiser to find a clean estimate again.

    Two rows of the denoiser at each of three levels, for each estimate.

    Args:
        concept: a word or phrase; it need not be in the prompt.
        pipe: the pipeline.
        decodes: whether estimates are latents; else they are pictures already.

    Raises:
        TypeError: the model can't be asked at a level.
        ValueError: the concept has no word.
    """

    def __init__(self, concept: str, pipe: Any, *, decodes: bool = True) -> None:
        if not words(concept):
            raise ValueError(f"target={concept!r}: a concept is a text with a word in it")
        family = family_of_pipeline(pipe)
        probed = probed_family(family)
        if probed is None:
            raise TypeError(f"target={concept!r}: {type(pipe).__name__} can't be asked at a level")
        self.name = f"the presence of {concept!r}"
        self.pipe, self.probed, self.decodes = pipe, probed, decodes
        self.device = torch.device(pipe._execution_device)
        with torch.no_grad():
            self.texts = [
                tuple(encode_prompts(pipe, [text], self.device)) for text in ("", concept)
            ]
        self.dtype = family.encoded(self.texts[0]).positive.dtype

    def values(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return the concept's presence in each row, the mean over the states, (rows,)."""
        return torch.stack([self._of_state(state) for state in estimates.unbind(1)]).mean(0)

    def cells(self, estimates: Tensor, full: Tensor) -> Tensor:
        """Return minus the mean squared change of each cell: where the estimate itself changes."""
        return -((estimates - full.to(estimates)) ** 2).mean(2).mean(1)

    def _of_state(self, pictures: Tensor) -> Tensor:
        found = []
        for some in pictures.split(ROWS):
            given = some.to(self.device)
            clean = given if self.decodes else encoded_pictures(self.pipe, 2 * given - 1)
            found.append(self.gained(clean).cpu())
        return torch.cat(found)

    def gained(self, clean: Tensor) -> Tensor:
        """Return the share of the error that the text takes away, of each of some latents."""
        scheduler, gains = self.pipe.scheduler, []
        for n, level in enumerate(LEVELS):
            noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(n))
            noised = self.probed.noised(scheduler, clean, noise.to(clean), level)
            plain, told = (self._missed(noised, clean, text, level) for text in self.texts)
            gains.append(1 - told / plain.clamp_min(1e-12))
        return torch.stack(gains).mean(0)

    def _missed(
        self, noised: Tensor, clean: Tensor, encoded: tuple[Any, ...], level: float
    ) -> Tensor:
        """Return the squared error of the estimate of each row."""
        timestep = self.probed.level_timestep(self.pipe.scheduler, level)
        given = noised.to(self.dtype)
        output = self.probed.denoise(self.pipe, given, timestep, of_rows(encoded, len(given)))
        found = self.probed.estimate(self.pipe.scheduler, given, output, level)
        return ((found - clean) ** 2).flatten(1).mean(1)
