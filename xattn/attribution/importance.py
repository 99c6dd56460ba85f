"""``importance(pipe, items)``: which input decides, over a set of items.

Permutation importance (Breiman 2001; Fisher et al. 2019): one input's values are shuffled among the
items, every item is drawn with its new value, and what its picture changes by is the importance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xattn.attribution.store import Answers, digest
from xattn.results.attribution import Attribution


@torch.no_grad()
def importance(
    pipe: Any,
    items: Sequence[Mapping[str, Any]],
    *,
    shuffles: int = 1,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Attribution:
    """Measure how much each input decides, by shuffling its values among items.

    Draws every item once, and once more for each input and shuffle. Of a batch's folder
    ``xattn.open_runs(folder).importance(pipe)`` takes the items as they were drawn.

    Args:
        pipe: the pipeline.
        items: the options of each item's call that differ: ``prompt``, ``negative_prompt``,
            ``seed``, ``image``, ``ip_adapter_image`` ...; all have the same ones.
        shuffles: how often each input's values are shuffled.
        seed: of the shuffles.
        cache: a folder that keeps every picture, so that what was interrupted goes on.
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
    return shuffled(Pictures(pipe, options, cache), rows, shuffles=shuffles, seed=seed)


class Pictures:
    """Pictures of items, in [0, 1]; those kept on disk aren't drawn again.

    Args:
        pipe: the pipeline.
        options: of every call.
        cache: a folder, or None. Its files belong to what the pipeline draws of the first item.
    """

    def __init__(
        self, pipe: Any, options: Mapping[str, Any], cache: str | os.PathLike[str] | None = None
    ) -> None:
        self.pipe, self.options = pipe, dict(options)
        self.store = None if cache is None else Answers(cache)
        self.drawn = 0
        self._first: tuple[str, Tensor] | None = None

    def __call__(self, row: Mapping[str, Any]) -> Tensor:
        """Return an item's picture, (1, 3, height, width)."""
        if self.store is None:
            return self._draw(row)
        name = digest([dict(row), self.options])
        if self._first is None:
            self._first = name, self._draw(row)
            self.store.open("importance", self._first[1])
        if name == self._first[0]:
            return self._first[1]
        found = self.store.read(name)
        if found is None:
            found = self._draw(row)
            self.store.write(name, found)
        return found

    def _draw(self, row: Mapping[str, Any]) -> Tensor:
        given = {**self.options, **row}
        if "seed" in given:
            given["generator"] = torch.Generator().manual_seed(int(given.pop("seed")))
        self.drawn += 1
        images: Tensor = self.pipe(**given, output_type="pt").images
        return images.float().cpu()


@torch.no_grad()
def shuffled(
    pictures: Pictures,
    rows: Sequence[dict[str, Any]],
    *,
    shuffles: int = 1,
    seed: int = 0,
    plain: Sequence[Tensor] | None = None,
) -> Attribution:
    """Return what each input decides, by drawing items with shuffled values.

    Args:
        pictures: draws them.
        rows: each item's inputs.
        shuffles: how often each input's values are shuffled.
        seed: of the shuffles.
        plain: the items' own pictures, where they are drawn already.
    """
    names, random = list(rows[0]), np.random.default_rng(seed)
    own = [pictures(row) for row in rows] if plain is None else plain
    changes = np.zeros((len(names), len(rows)))
    with pictures.pipe.progress_bar(total=len(names) * shuffles * len(rows)) as bar:
        for n, name in enumerate(names):
            for _ in range(shuffles):
                order = deranged(len(rows), random)
                for i, row in enumerate(rows):
                    other = pictures({**row, name: rows[order[i]][name]})
                    changes[n, i] += float(((other - own[i]) ** 2).mean()) / shuffles
                    bar.update(1)
    return Attribution(
        words=tuple(names),
        values=changes.mean(1),
        intervals=bootstrapped(changes, random),
        how="permutation importance",
        target="the picture",
        absent="another item's value stands in its place",
        calls=pictures.drawn,
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
