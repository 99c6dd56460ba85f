"""Heat maps from recorded probabilities (Tang et al. 2023, section 3).

The heat map of a word, for each layer: average its probabilities over heads, sum over steps,
resize (bicubic) to the latent grid, clamp at 0; then average over layers and over the word's
tokens.

The sum over steps follows the definition: a heat map of 50 steps is 50 times an average step.
If a recording kept only the mean over its steps, the sum is this mean times the number of
steps. A kept mean over layers of one grid counts once per averaged layer (and is clamped once,
after the mean).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from xattn.maps.select import (
    Heads,
    Steps,
    completed,
    head_indices,
    image_index,
    layers_with,
    need,
    step_indices,
    token_index,
)
from xattn.records.run import LayerFilter, Run


def token_maps(
    run: Run,
    positions: Sequence[int],
    image: int = 0,
    *,
    steps: Steps = None,
    layers: LayerFilter = None,
    heads: Heads = None,
) -> torch.Tensor:
    """Return the heat map of each token, float32 (tokens, height, width) on the latent grid.

    Args:
        run: the recorded run.
        positions: positions of the tokens on the token axis.
        image: index of the image, in the order of ``pipe(...).images``.
        steps: the steps to sum; all complete ones by default.
        layers: names, globs, a predicate of ``Layer``, "daam" or "all".
        heads: the heads to average, or heads of some layers by the layers' names; all by
            default.

    Raises:
        ValueError: an argument selects something not in the recording.
    """
    chosen, weights = layers_with(run, layers, heads)
    total = torch.zeros(len(positions), *run.latent)
    for layer, weight in zip(chosen, weights, strict=True):
        native = layer_maps(run, layer, positions, image, steps=steps, heads=heads)
        total += weight * to_grid(native, run.latent)
    return total


def step_token_maps(
    run: Run,
    positions: Sequence[int],
    image: int = 0,
    *,
    layers: LayerFilter = None,
    heads: Heads = None,
) -> torch.Tensor:
    """Return the heat maps of each single step, float32 (steps, tokens, height, width)."""
    need(run, "step", "maps of single steps")
    chosen, weights = layers_with(run, layers, heads)
    total = torch.zeros(completed(run), len(positions), *run.latent)
    for layer, weight in zip(chosen, weights, strict=True):
        for step, native in enumerate(_each_step(run, layer, positions, image, None, heads)):
            total[step] += weight * to_grid(native, run.latent)
    return total


def layer_maps(
    run: Run,
    layer: int,
    positions: Sequence[int],
    image: int = 0,
    *,
    steps: Steps = None,
    heads: Heads = None,
) -> torch.Tensor:
    """Return one layer's mean over heads and sum over steps, (tokens, h, w) on its own grid."""
    total = torch.zeros(len(positions), *run.layers[layer].grid)
    for native in _each_step(run, layer, positions, image, steps, heads):
        total += native
    return total if "step" in run.keep else total * completed(run)


def head_maps(
    run: Run, layer: int, positions: Sequence[int], image: int = 0, *, steps: Steps = None
) -> torch.Tensor:
    """Return each head's sum over steps, (heads, tokens, h, w) on the layer's own grid."""
    need(run, "head", "maps of single heads")
    index, rows = token_index(run, positions), image_index(run, image)
    total = torch.zeros(run.layers[layer].heads, len(positions), *run.layers[layer].grid)
    for step in step_indices(run, steps):
        total += run.store.read(layer, [step])[0, rows][:, index].float()
    return total if "step" in run.keep else total * completed(run)


def step_layer_maps(
    run: Run, layer: int, positions: Sequence[int], image: int = 0, *, heads: Heads = None
) -> torch.Tensor:
    """Return one layer's mean over heads at each step, (steps, tokens, h, w) on its own grid.

    Without the step axis there is one step: the mean.
    """
    return torch.stack(list(_each_step(run, layer, positions, image, None, heads)))


def to_grid(native: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Resize (..., h, w) to another grid: bicubic, clamped at 0."""
    lead = native.shape[:-2]
    flat = native.reshape(-1, 1, *native.shape[-2:])  # (maps, 1, h, w)
    sized = F.interpolate(flat, size=grid, mode="bicubic", align_corners=False)
    return sized.clamp_min(0).reshape(*lead, *grid)  # (..., height, width)


def _each_step(
    run: Run, layer: int, positions: Sequence[int], image: int, steps: Steps, heads: Heads
) -> Iterator[torch.Tensor]:
    """Yield (tokens, h, w) for each step, averaged over the chosen heads.

    One step at a time, and only the chosen tokens in float32: a run can exceed memory.
    """
    index, row = token_index(run, positions), image_index(run, image)
    chosen = head_indices(run, layer, heads)
    for step in step_indices(run, steps):
        maps = run.store.read(layer, [step])[0, row][:, index]  # (heads, tokens, h, w)
        yield (maps if chosen is None else maps[chosen]).float().mean(0)
