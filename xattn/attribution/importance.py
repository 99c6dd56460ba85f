"""``importance(pipe, items)``: which input decides, over a set of items.

Permutation importance (Breiman 2001; Fisher et al. 2019): one input's values are shuffled among the
items, every item is drawn with its new value, and what its picture changes by is the importance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.results.attribution import Attribution


@torch.no_grad()
def importance(
    pipe: Any,
    items: Sequence[Mapping[str, Any]],
    *,
    shuffles: int = 1,
    seed: int = 0,
    **options: Any,
) -> Attribution:
    """Measure how much each input decides, by shuffling its values among items.

    Draws every item once, and once more for each input and shuffle.

    Args:
        pipe: the pipeline.
        items: the options of each item's call that differ: ``prompt``, ``negative_prompt``,
            ``seed``, ``image``, ``ip_adapter_image`` ...; all have the same ones.
        shuffles: how often each input's values are shuffled.
        seed: of the shuffles.
        **options: of every call.

    Returns:
        The mean squared change of the picture in [0, 1] for each input, with its 95 % bootstrap
        interval over items.

    Raises:
        ValueError: there are fewer than two items, or they have different options.

    Example:
        >>> items = [{"prompt": text, "seed": n} for n, text in enumerate(texts)]
        >>> xattn.importance(pipe, items).bar().save("inputs.png")
    """
    rows = [dict(item) for item in items]
    names = list(rows[0]) if rows else []
    if len(rows) < 2 or not names or any(list(row) != names for row in rows):
        raise ValueError("items must be two or more, all with the same options in the same order")
    random = np.random.default_rng(seed)
    plain = [_drawn(pipe, row, options) for row in rows]
    changes = np.zeros((len(names), len(rows)))
    with pipe.progress_bar(total=len(names) * shuffles * len(rows)) as bar:
        for n, name in enumerate(names):
            for _ in range(shuffles):
                order = deranged(len(rows), random)
                for i, row in enumerate(rows):
                    other = _drawn(pipe, {**row, name: rows[order[i]][name]}, options)
                    changes[n, i] += float(((other - plain[i]) ** 2).mean()) / shuffles
                    bar.update(1)
    return Attribution(
        words=tuple(names),
        values=changes.mean(1),
        intervals=bootstrapped(changes, random),
        how="permutation importance",
        target="the picture",
        absent="another item's value stands in its place",
        calls=(1 + len(names) * shuffles) * len(rows),
    )


def deranged(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return an order in which nothing stays in its place: a random cycle."""
    cycle = random.permutation(count)
    order = np.empty(count, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def bootstrapped(
    changes: NDArray[np.float64], random: np.random.Generator, draws: int = 1000
) -> NDArray[np.float64]:
    """Return the 95 % interval of each row's mean, (rows, 2)."""
    picks = random.integers(changes.shape[1], size=(draws, changes.shape[1]))
    means = changes[:, picks].mean(2)  # (rows, draws)
    limits: NDArray[np.float64] = np.quantile(means, [0.025, 0.975], axis=1).T
    return limits


def _drawn(pipe: Any, row: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
    given = {**options, **row}
    if "seed" in given:
        given["generator"] = torch.Generator().manual_seed(int(given.pop("seed")))
    images: Tensor = pipe(**given, output_type="pt").images
    return images.float().cpu()
