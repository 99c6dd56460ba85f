"""Maps packed into the bytes that a report has for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from xattn.maps import competition, daam, measures
from xattn.records.run import Run

BUDGET = 6_760_000  # bytes of maps and their maxima; base64 adds a third


_CAPS = (32, 24, 16, 12, 8, 6, 4)  # longest side of a map of one layer at one step


_WHOLE = 64  # ... of the map over everything, where there is room


_SCALE = 8  # of a map's maximum and grid, as text, less what base64 adds


MOST_STEPS = 100  # at most so many are shown


Grid = tuple[int, int]


def share_block(run: Run, image: int, words: Sequence[tuple[int, ...]], room: int) -> bytes:
    """Return the words' shares of each place of the latent grid.

    Tenths of a per cent as ``WordsAt`` writes them, uint16 little-endian (words + 1, height,
    width), the rest's last; empty where they would take over a 24th of the maps' room.
    """
    size = 2 * (len(words) + 1) * run.latent[0] * run.latent[1]
    if size > room // 24 or not words:
        return b""
    rows = [[run.positions.index(position) for position in places] for places in words]
    tokens = competition.mean_tokens(run, run.positions, image)
    shares = competition.word_shares(tokens, rows).double().numpy()
    texts = np.char.replace(np.char.mod("%.1f", 100 * shares), ".", "")
    return texts.astype(np.int64).clip(0).astype("<u2").tobytes()


def fitting_grids(run: Run, words: int, steps: int, room: int) -> tuple[int, dict[str, Any]]:
    """Return how many steps the page shows, and the grids of its maps: those that fit the room."""
    grids = grids_of(run, words, steps, room)
    while steps > 2 and cost_of(grids, words) > room:  # even with the coarsest maps
        steps -= max(1, steps // 10)
        grids = grids_of(run, words, steps, room)
    return steps, grids


def grids_of(run: Run, words: int, steps: int, room: int) -> dict[str, Any]:
    """Return the grid of each map that the page holds, as fine as the room allows."""
    heads = [x.heads for x in run.layers] if "head" in run.keep else []
    for cap in _CAPS:
        found = {
            "total": _capped(run.latent, min(_WHOLE, 8 * cap)),
            "layers": [_capped(x.grid, 2 * cap) for x in run.layers],
            "steps": [_capped(run.latent, cap)] * steps,
            "fine": [_capped(x.grid, cap) for x in run.layers] * steps,
            "heads": [
                [_capped(x.grid, max(4, cap // 2))] * n
                for x, n in zip(run.layers, heads, strict=bool(heads))
            ],
        }
        if cost_of(found, words) <= room:
            break
    return found


def cost_of(grids: dict[str, Any], words: int) -> int:
    """Return the bytes that the maps of some words take on the page, before base64."""
    flat: list[Grid] = [grids["total"], *grids["layers"], *grids["steps"], *grids["fine"]]
    flat += [grid for layer in grids["heads"] for grid in layer]
    cells = sum(height * width for height, width in flat)
    return words * cells + (words + 1) * _SCALE * len(flat)  # each grid stands there once


def _capped(grid: Grid, side: int) -> Grid:
    share = min(1.0, side / max(grid))
    return max(1, round(grid[0] * share)), max(1, round(grid[1] * share))


def map_blocks(
    run: Run,
    image: int,
    words: Sequence[tuple[int, ...]],
    steps: Sequence[int],
    grids: dict[str, Any],
) -> tuple[list[bytes], list[list[float]]]:
    """Return for each word its maps as bytes, in the order of the grids, and their maxima."""
    if not words:
        return [], []
    tokens = sorted({position for places in words for position in places})
    share = torch.zeros(len(words), len(tokens))
    for n, places in enumerate(words):
        share[n, [tokens.index(p) for p in places]] = 1 / len(places)

    def of_words(stack: torch.Tensor, grid: Grid) -> Iterable[torch.Tensor]:
        """Yield (words, h, w) of each (tokens, h, w) in a stack: the mean over the tokens."""
        for each in stack:
            yield _shrunk(torch.einsum("nt,thw->nhw", share, each), grid)

    found: list[torch.Tensor] = []
    found += of_words(daam.token_maps(run, tokens, image)[None], grids["total"])
    for n, grid in enumerate(grids["layers"]):
        found += of_words(daam.layer_maps(run, n, tokens, image)[None], grid)
    if steps:
        found += of_words(daam.step_token_maps(run, tokens, image)[list(steps)], grids["steps"][0])
        columns = [
            list(of_words(daam.step_layer_maps(run, n, tokens, image)[list(steps)], grid))
            for n, grid in enumerate(grids["fine"][: len(run.layers)])
        ]
        found += [column[s] for s in range(len(steps)) for column in columns]
    for n, layer in enumerate(grids["heads"]):
        found += of_words(daam.head_maps(run, n, tokens, image), layer[0])

    blocks, scales = [bytearray() for _ in words], [list[float]() for _ in words]
    for each in found:
        top = each.amax((1, 2))  # (words,)
        if not bool(torch.isfinite(top).all()):
            raise ValueError(
                "the maps hold values that are not finite: the run went out of the model's range; "
                "draw it with a smaller guidance scale or smaller weights"
            )
        level = each / top.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None] * 255
        for n, values in enumerate(level.round().to(torch.uint8).numpy()):
            blocks[n] += values.tobytes()
            scales[n].append(float(f"{float(top[n]):.4g}"))
    return [bytes(block) for block in blocks], scales


def measures_of(
    run: Run, image: int, words: Sequence[tuple[int, ...]]
) -> list[list[float | list[float]]]:
    """Return each word's measures, in the order of ``MEASURES``, to four significant digits.

    They are those of ``HeatMap.measure()``: of the whole map, on the latents' grid.
    """
    if not words:
        return []
    tokens = sorted({position for places in words for position in places})
    maps = daam.token_maps(run, tokens, image)
    wholes = [maps[[tokens.index(p) for p in places]].mean(0).numpy() for places in words]
    return [[_plain(value) for value in measures.measured(whole).values()] for whole in wholes]


def _plain(value: measures.Value) -> float | list[float]:
    if isinstance(value, tuple):
        return [float(f"{each:.4g}") for each in value]
    return float(f"{value:.4g}")


def _shrunk(each: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Averages (words, h, w) down to a smaller grid."""
    if tuple(each.shape[1:]) == tuple(grid):
        return each
    return F.adaptive_avg_pool2d(each, grid)
