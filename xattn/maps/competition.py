"""Words or concepts that compete for each place of the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xattn.maps import daam, select
from xattn.records.run import LayerFilter, Run

_TINY = 1e-12


def competing(maps: Tensor, temperature: float = 1.0) -> Tensor:
    """Return each map's share of every place, softmax(log(maps) / temperature).

    At a temperature of 1 a share is the map divided by the sum of all maps; below it the
    strongest takes more, above it less. Where all maps are zero, shares are equal.

    Args:
        maps: (maps, height, width), nowhere negative.
        temperature: above 0.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return ((maps.double().clamp_min(_TINY)).log() / temperature).softmax(0).float()


def place_entropy(maps: Tensor) -> float:
    """Return the entropy of the shares at a place, averaged over the grid, in [0, 1].

    0 where one of the maps takes every place, 1 where all of them share each place evenly.

    Args:
        maps: (maps, height, width), nowhere negative.
    """
    if len(maps) < 2:
        return 0.0
    shares = competing(maps).double()
    nats = -(shares * shares.clamp_min(_TINY).log()).sum(0).mean()
    return min(1.0, max(0.0, float(nats / torch.tensor(len(maps)).double().log())))


def layer_entropies(
    run: Run, words: list[tuple[int, ...]], image: int = 0, *, layers: LayerFilter = "all"
) -> dict[str, float]:
    """Return the entropy over words of each layer, by the layer's name, the lowest first.

    Args:
        run: the recorded run.
        words: token positions of each word.
        image: index of the image.
        layers: which layers.
    """
    found = {}
    for n in select.layers_of(run, layers)[0]:
        maps = torch.stack([daam.layer_maps(run, n, word, image).sum(0) for word in words])
        found[run.layers[n].name] = place_entropy(maps)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def cell_of(place: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    """Return the (row, column) of a place on a grid of (height, width).

    Args:
        place: (x, y), each in [0, 1] from the top left corner.
        grid: (height, width).

    Raises:
        ValueError: the place is not on the picture.
    """
    x, y = place
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(
            f"place={place!r} is (x, y), each in [0, 1] from the top left corner of the picture"
        )
    height, width = grid
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def word_shares(tokens: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Return each word's share of the attention at every place, and the rest's behind them.

    Args:
        tokens: probabilities of the kept tokens, (tokens, height, width).
        words: for each word the rows of its tokens.

    Returns:
        (words + 1, height, width), summing to one; the last is that of all tokens of no word and
        of those that were not kept.
    """
    shares = shares_of(tokens)
    found = [shares[list(rows)].sum(0) for rows in words]
    inside = sorted({row for rows in words for row in rows})
    return torch.stack([*found, 1 - shares[inside].sum(0)])


def shares_of(tokens: Tensor) -> Tensor:
    """Return (tokens + 1, height, width): the tokens' shares of each place, and the rest's.

    Bicubic sampling can lift a sum above one; it is then divided by it.
    """
    known = tokens.double()
    total = known.sum(0, keepdim=True)
    known = known / total.clamp_min(1)
    return torch.cat([known, (1 - known.sum(0, keepdim=True)).clamp_min(0)]).float()


def mean_tokens(
    run: Run, positions: tuple[int, ...], image: int, *, steps: select.Steps = None,
    layers: LayerFilter = None, heads: select.Heads = None,
) -> Tensor:  # fmt: skip
    """Return the mean probabilities per step, (tokens, height, width) on the latent grid."""
    total = daam.token_maps(run, positions, image, steps=steps, layers=layers, heads=heads)
    count = len(select.step_indices(run, steps)) if "step" in run.keep else run.done
    return total / count
