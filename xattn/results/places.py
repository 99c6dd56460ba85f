"""The words that act at one place of the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xattn.maps import competition, daam, select
from xattn.records.run import LayerFilter, Run

By = Literal["step", "layer", "head"]


@dataclass(frozen=True)
class WordsAt:
    """The words that act at a place, the strongest first.

    Iterating yields (word, share). Shares of all words and ``rest`` sum to one.

    Attributes:
        place: (x, y), each in [0, 1] from the top left corner.
        shares: (word, share) pairs; the share is what the word's tokens hold of the attention
            there. A word that comes twice has two entries.
        rest: the share of every other token: start, end, padding, words that were not kept and,
            in joint attention, the image itself.
    """

    place: tuple[float, float]
    shares: tuple[tuple[str, float], ...]
    rest: float

    @property
    def first(self) -> str:
        """The strongest word."""
        return self.shares[0][0]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter(self.shares)

    def __str__(self) -> str:
        rows = [*self.shares, ("(other tokens)", self.rest)]
        room = max(len(word) for word, _ in rows)
        return "\n".join(f"{word:<{room}}  {100 * share:5.1f} %" for word, share in rows)


def words_at(
    run: Run,
    place: tuple[float, float],
    image: int = 0,
    *,
    steps: select.Steps = None,
    layers: LayerFilter = None,
    heads: select.Heads = None,
) -> WordsAt:
    """Return the words that act at a place, from the mean of some steps, layers and heads.

    Raises:
        ValueError: the place is not on the picture, or a selection is not in the recording.
    """
    _check_shares(run)
    tokens = competition.mean_tokens(
        run, run.positions, image, steps=steps, layers=layers, heads=heads
    )
    return _ranked(run, image, place, tokens)


def _check_shares(run: Run) -> None:
    """Raise ValueError if a place's values are not shares of its attention."""
    if run.info.get("direction", "image") != "image":
        raise ValueError(
            "direction='text' recorded what words give to places, and no place's shares of words: "
            "record without it"
        )


def words_at_each(
    run: Run, place: tuple[float, float], image: int, by: By, layers: LayerFilter = None
) -> dict[str, WordsAt]:
    """Return the words at a place in each step, layer, or head of each layer.

    Raises:
        ValueError: ``by`` is none of these, or its axis was not kept.
    """
    _check_shares(run)
    if by == "step":
        stack = daam.step_token_maps(run, run.positions, image, layers=layers)
        return {f"step {n}": _ranked(run, image, place, maps) for n, maps in enumerate(stack)}
    if by not in ("layer", "head"):
        raise ValueError(f"by={by!r} is none of step, layer, head")
    found = {}
    for n in select.layers_of(run, layers or "all")[0]:
        name = run.layers[n].name
        if by == "layer":
            maps = daam.layer_maps(run, n, run.positions, image) / run.done
            found[name] = _ranked(run, image, place, daam.to_grid(maps, run.latent))
            continue
        for head, maps in enumerate(daam.head_maps(run, n, run.positions, image) / run.done):
            sized = daam.to_grid(maps, run.latent)
            found[f"{name}, head {head}"] = _ranked(run, image, place, sized)
    return found


def _ranked(run: Run, image: int, place: tuple[float, float], tokens: Tensor) -> WordsAt:
    row, column = competition.cell_of(place, (tokens.shape[1], tokens.shape[2]))
    words = word_rows(run, image)
    shares = competition.word_shares(tokens, [rows for _, rows in words])[:, row, column]
    found = [(text, float(share)) for (text, _), share in zip(words, shares[:-1], strict=True)]
    x, y = place
    ranked = tuple(sorted(found, key=lambda each: -each[1]))
    return WordsAt((float(x), float(y)), ranked, float(shares[-1]))


def word_rows(run: Run, image: int) -> list[tuple[str, Sequence[int]]]:
    """Return the kept words of an image's prompt in order, with the rows of their tokens."""
    prompt = run.prompt(select.image_index(run, image))
    where = {position: row for row, position in enumerate(run.positions)}
    if prompt.is_anonymous:
        return [(f"token {position}", [row]) for position, row in where.items()]
    return [
        (word.text, [where[p] for p in word.positions])
        for word in prompt.words
        if all(p in where for p in word.positions)
    ]
