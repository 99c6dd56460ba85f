"""The grids within reach of edits: followed self-attention, and LocalBlend's maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log

from xattn.models.family import AttentionLayer, matches

Grid = tuple[int, int]


def area_limit(latent: Grid, side: int | None) -> int:
    """Return the maximum number of queries of a layer whose self-attention follows the source.

    16 x 16, or a quarter of the latents' height and width if larger: as in the paper's code for
    Stable Diffusion at 512 pixels, and 32 x 32 for SDXL at 1024.
    """
    if side is not None:
        return side * side
    return max(16 * 16, -(-latent[0] // 4) * -(-latent[1] // 4))


def map_layers(
    layers: Iterable[AttentionLayer], globs: Sequence[str] | None
) -> list[AttentionLayer]:
    """Return the layers whose maps may make LocalBlend's masks: a family's own choice, or all."""
    found = list(layers)
    chosen = [each for each in found if any(matches(each.name, glob) for glob in globs or ("*",))]
    return chosen or found


def middle_grid(grids: Iterable[Grid], latent: Grid, side: int | None) -> Grid:
    """Return the middle-resolution grid whose maps make LocalBlend's masks."""
    most = area_limit(latent, side)
    return min(set(grids), key=lambda g: (abs(log(g[0] * g[1] / most)), g))


def quarter_grid(grids: Iterable[Grid], latent: Grid) -> Grid:
    """Return the grid nearest to a quarter of the latents' height and width.

    There words have their places: 16 x 16 of 64 for Stable Diffusion at 512 pixels, as in
    Attend-and-Excite; 32 x 32 of 128 for SDXL.
    """
    area = latent[0] * latent[1] / 16
    return min(set(grids), key=lambda grid: (abs(log(grid[0] * grid[1] / area)), grid))


def in_decoder(layers: Iterable[AttentionLayer]) -> list[AttentionLayer]:
    """Return the layers of a UNet's decoder, whose maps tell the most; all where there is none."""
    found = list(layers)
    return [each for each in found if "up_blocks" in each.name] or found
