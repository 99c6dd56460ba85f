"""The passes that tell whether words are in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from xattn.api.concepts import encode_prompts
from xattn.maps import presence
from xattn.maps.evidence import gains
from xattn.models.probing import encoded_pictures
from xattn.text.matching import words
from xattn.text.pairs import ARTICLES, LINKS


def content_words(text: str) -> list[str]:
    """Return the words of a text that can be seen, each once: no articles, no prepositions."""
    found = [text[start:stop] for start, stop in words(text)]
    named = [word for word in found if word.casefold() not in ARTICLES | LINKS]
    return list(dict.fromkeys(named))


def presence_rows(asked: int, levels: int, noises: int) -> int:
    """Return the denoiser rows for one picture: a text each for the words, and the empty one."""
    return (asked + 1) * levels * noises


@torch.no_grad()
def evidence(
    pipe: Any,
    family: Any,
    picture: Image.Image,
    asked: Sequence[str],
    levels: Sequence[tuple[float, float]],
    noises: Sequence[torch.Generator],
    batch: int,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Return what each word alone changes in the denoiser's estimates.

    Returns:
        Products of the changes, as plain JSON values; and each word's gain in each cell of the
        latents, (levels, words, height, width), the mean over the noises.

    Args:
        pipe: the pipeline.
        family: that of its denoiser, which can be probed.
        picture: of a size that the model takes.
        asked: the words.
        levels: (level, timestep) pairs, descending.
        noises: a fresh generator for each noise, drawn from at each level in turn.
        batch: rows of one call.
    """
    device = torch.device(pipe._execution_device)
    texts = ["", *asked]
    parts = [texts[n : n + batch] for n in range(0, len(texts), batch)]
    encoded = [(len(part), encode_prompts(pipe, part, device)) for part in parts]
    kind = family.encoded(encoded[0][1]).positive.dtype
    pixels = pipe.image_processor.preprocess([picture])
    clean = encoded_pictures(pipe, pixels.to(device))[0]
    grams, alongs, cells = [], [], []
    for level, timestep in levels:
        for generator in noises:
            noise = torch.randn(clean.shape, generator=generator).to(device)
            latents = family.noised(pipe.scheduler, clean, noise, level).to(kind)
            estimates = []
            for count, states in encoded:
                rows = latents.expand(count, *latents.shape)
                output = family.denoise(pipe, rows, timestep, states)
                estimates.append(family.estimate(pipe.scheduler, rows, output, level))
            plain, told = torch.cat(estimates).cpu().split([1, len(asked)])
            gram, along = presence.products(clean.cpu(), plain[0], told)
            grams.append(gram.tolist())
            alongs.append(along.tolist())
            cells.append(gains(clean.cpu(), plain[0], told))
    pipe.maybe_free_model_hooks()
    found = torch.stack(cells).unflatten(0, (len(levels), len(noises))).mean(1)
    return {"words": list(asked), "products": grams, "along": alongs}, found
