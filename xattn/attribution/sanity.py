"""``sanity(pipe, trace, "red")``: is a word's map more than a habit of the layers?

After Adebayo et al. 2018, for words: a map that shows what a word stands for comes out again with
other noise, and is unlike the maps of words that aren't in the picture, of the words that come to
its place when the prompt is shuffled, and of a model whose weights are shuffled from the end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xattn.api.probe import probe
from xattn.attribution.attribute import picture_of
from xattn.attribution.store import Answers, digest
from xattn.attribution.weights import shuffled_weights
from xattn.models.sizes import denoiser_of
from xattn.results.sanity import Sanity
from xattn.results.trace import Trace
from xattn.text.matching import matches

STRANGERS = ("zebra", "violin", "umbrella", "castle", "bicycle", "pineapple", "candle", "giraffe")
"""Words that are in few pictures."""
STAGES = (0.25, 0.5, 0.75, 1.0)
LEVELS = (0.3, 0.5, 0.7)

Maps = list[NDArray[np.float32]]


def sanity(
    pipe: Any,
    trace: Trace,
    word: str,
    *,
    image: int = 0,
    strangers: Sequence[str] = STRANGERS,
    noises: int = 4,
    shuffles: int = 8,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    batch: int = 8,
    cache: str | os.PathLike[str] | None = None,
) -> Sanity:
    """Compare a word's map with maps that can't show what it stands for.

    All maps are of the trace's picture, probed: ``noises + 1`` of the word, one for each stranger
    in its place, two for each shuffled prompt, and four with shuffled weights; each takes a row of
    the denoiser at every level, which a progress bar counts.

    Args:
        pipe: a pipeline that can be probed.
        trace: of the picture.
        word: a word of its prompt that comes once.
        image: index of the trace's image.
        strangers: words that the picture does not show.
        noises: how often the word is probed again, with other noise.
        shuffles: how many shuffled prompts.
        levels: shares of the noise schedule.
        seed: of noise, orders and weights.
        batch: rows that pass together.
        cache: a folder that keeps every map, so that what was interrupted goes on.

    Raises:
        TypeError: the model can't be probed, or its weights are offloaded.
        ValueError: the word is not in the prompt once, or a stranger is.

    Example:
        >>> with xattn.record(pipe) as trace:
        ...     pipe("a red car on a green lawn")
        >>> print(xattn.sanity(pipe, trace, "red"))
    """
    text, picture = trace.run.prompt(trace._index(image)).text, picture_of(trace, image)
    spans = list(matches(text, word))
    if len(spans) != 1:
        raise ValueError(
            f"word {word!r} must come once in the prompt {text!r}; it comes {len(spans)} times"
        )
    known = [each for each in strangers if list(matches(text, each))]
    if known or not strangers:
        raise ValueError(f"strangers={list(strangers)!r} must be words that aren't in {text!r}")

    orders = _shuffled(text, word, shuffles, seed)
    count = 1 + noises + len(strangers) + 2 * shuffles + len(STAGES)
    store = None if cache is None else Answers(cache)
    with pipe.progress_bar(total=count * len(levels)) as bar:
        maps = _Probing(pipe, picture, levels, batch, store, bar)
        (first,) = maps([text], [word], [seed])
        maps.open(text, word, first)
        again = maps([text] * noises, [word] * noises, range(seed + 1, seed + noises + 1))
        start, end = spans[0]
        others = [text[:start] + each + text[end:] for each in strangers]
        absent = maps(others, strangers, [seed] * len(others))
        moved = maps([order for order, _ in orders], [word] * len(orders), [seed] * len(orders))
        place = maps([o for o, _ in orders], [there for _, there in orders], [seed] * len(orders))
        weights = []
        for share in STAGES:
            with shuffled_weights(denoiser_of(pipe), share, seed):
                weights += maps([text], [word], [seed], stage=share)
    return Sanity(
        word=word,
        again=_alike(first, again),
        absent=_alike(first, absent),
        place=_alike(first, place),
        moved=_alike(first, moved),
        weights=dict(zip(STAGES, _alike(first, weights).tolist(), strict=True)),
    )


class _Probing:
    """Maps of words in one picture; those kept on disk aren't asked again."""

    def __init__(
        self,
        pipe: Any,
        picture: Image.Image,
        levels: Sequence[float],
        batch: int,
        store: Answers | None,
        bar: Any,
    ) -> None:
        self.pipe, self.picture, self.levels, self.batch = pipe, picture, levels, batch
        self.bar = bar
        self._given = store
        self._store: Answers | None = None

    def open(self, text: str, word: str, first: NDArray[np.float32]) -> None:
        """Name the question, which the model's own map is part of."""
        self._store = self._given
        if self._store is not None:
            self._store.open("sanity", text, word, self.levels, self.picture, first)

    def __call__(
        self,
        texts: Sequence[str],
        words: Sequence[str],
        seeds: Sequence[int],
        stage: float = 0.0,
    ) -> Maps:
        """Return the map of a word of each text, of weights shuffled up to a stage."""
        asked = list(zip(texts, words, seeds, strict=True))
        names = [digest((*each, stage)) for each in asked]
        found = {} if self._store is None else self._kept(names)
        missing = [n for n, name in enumerate(names) if name not in found]
        if missing:
            new = self._asked([asked[n] for n in missing])
            for n, each in zip(missing, new, strict=True):
                found[names[n]] = each
                if self._store is not None:
                    self._store.write(names[n], torch.tensor(each))
        self.bar.update(len(texts) * len(self.levels))
        return [found[name] for name in names]

    def _kept(self, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        assert self._store is not None
        kept = {name: self._store.read(name) for name in names}
        return {name: each.numpy() for name, each in kept.items() if each is not None}

    def _asked(self, asked: Sequence[tuple[str, str, int]]) -> Maps:
        texts, words, seeds = (list(each) for each in zip(*asked, strict=True))
        traces = probe(
            self.pipe, [self.picture] * len(asked), texts, levels=self.levels, seed=seeds,
            batch=self.batch, keep=(), size=(self.picture.height, self.picture.width),
        )  # fmt: skip
        return [np.asarray(each.heatmap(word)) for each, word in zip(traces, words, strict=True)]


def _shuffled(text: str, word: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Return shuffled prompts, each with the word that comes to the given word's place.

    Raises:
        ValueError: the prompt has no other word.
    """
    words = text.split()
    at = next((n for n, each in enumerate(words) if list(matches(each, word))), None)
    if at is None or len(words) < 2:
        raise ValueError(f"the words of {text!r} can't be shuffled about {word!r}: name one word")
    random = np.random.default_rng(seed)
    found: list[tuple[str, str]] = []
    while len(found) < count:
        order = random.permutation(len(words))
        if order[at] == at:
            continue
        mixed = [words[n] for n in order]
        found.append((" ".join(mixed), mixed[at]))
    return found


def _alike(first: NDArray[np.float32], others: Maps) -> NDArray[np.float64]:
    return np.array([rank_correlation(first, each) for each in others])


def rank_correlation(one: NDArray[Any], two: NDArray[Any]) -> float:
    """Return Spearman's correlation of two maps' cells; 0 where one is even."""
    a, b = (torch.from_numpy(np.asarray(each, dtype=np.float64).ravel()) for each in (one, two))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    ranks = torch.stack([each.argsort().argsort().double() for each in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])
