"""``vital(pipe)``: which layers the image can't do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xattn.api.arguments import refuse_unknown
from xattn.maps.similarity import structural_similarity
from xattn.models import family_of_pipeline
from xattn.models.family import AttentionLayer, choose, named
from xattn.results.vitality import Vitality

PROMPTS = (
    "a red car on a green lawn",
    "a white boat on blue water",
    "a yellow flower on a black field",
    "a small house at night",
)
"""The prompts drawn where none are given."""


def vital(
    pipe: Any,
    prompts: str | Sequence[str] | None = None,
    *,
    layers: str | Sequence[str] | None = None,
    similarity: Callable[[Any, Any], float] = structural_similarity,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Vitality:
    """Measure how much the image changes where each attention layer is passed over.

    A layer that is passed over adds nothing to what it stands beside; everything else runs as
    always. Its vitality is 1 - the mean similarity of the images with and without it (Avrahami et
    al. 2025, "Stable Flow", section 3.1, where the whole block is passed over, and the similarity
    is DINOv2's). All images start from the same noise. It takes one pipeline call more than there
    are layers, each of all prompts.

    Args:
        pipe: a pipeline of a known family.
        prompts: the prompts to draw; four by default. More of them say more: the paper draws 64.
        layers: names or globs of the layers to try; by default those that read text, which
            ``record`` and ``edit`` accept as ``layers=``. "*" tries the image's own, too.
        similarity: a function of two pictures, the one with all layers first, that is 1 where they
            are alike. By default structural similarity (Wang et al. 2004), which needs no network:
            it sees layout and outlines, hardly colours.
        seed: of the noise, the same for each prompt.
        progress: called with the number of drawn batches, and how many there will be.
        **options: the pipeline's own, such as ``num_inference_steps``.

    Raises:
        TypeError: the pipeline is not of a known family.
        ValueError: prompts is empty, a glob matches no layer, or the pipeline lacks an option.

    Example:
        >>> found = xattn.vital(xattn.demo(), num_inference_steps=4)
        >>> print(found)
        >>> xattn.record(pipe, layers=found.layers)
    """
    texts = [prompts] if isinstance(prompts, str) else list(PROMPTS if prompts is None else prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts must be one text or several, got {prompts!r}")
    family = family_of_pipeline(pipe)
    refuse_unknown(pipe, options)
    found = [layer for model in family.denoisers(pipe) for layer in family.layers(model)]
    chosen = choose(found, None) if layers is None else named(found, layers)
    done = 0

    def drawn() -> list[Any]:
        nonlocal done
        noise = [torch.Generator().manual_seed(seed) for _ in texts]
        images: list[Any] = pipe(prompt=texts, generator=noise, **options).images
        done += 1
        if progress is not None:
            progress(done, 1 + len(chosen))
        return images

    plain, rows = drawn(), []
    for layer in chosen:
        with passed_over(layer):
            rows.append([1 - similarity(*pair) for pair in zip(plain, drawn(), strict=True)])
    return Vitality(tuple(layer.name for layer in chosen), np.array(rows, float), tuple(texts))


@contextmanager
def passed_over(layer: AttentionLayer) -> Iterator[None]:
    """Make a layer add nothing to what it stands beside, inside the block."""
    residual = bool(getattr(layer.module, "residual_connection", False))

    def nothing(_: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        if residual and given:
            return given[0]
        if isinstance(output, tuple):
            return tuple(torch.zeros_like(t) if isinstance(t, Tensor) else t for t in output)
        return torch.zeros_like(output)

    hook = layer.module.register_forward_hook(nothing)
    try:
        yield
    finally:
        hook.remove()
