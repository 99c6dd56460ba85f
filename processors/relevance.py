"""A point in each head for the concept whose word the picture attends to most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler


class Relevance(Handler):
    """Let one word of each concept compete in one layer's heads (Park et al. 2025, section 3.1).

    The words' keys stand in place of the prompt's: a softmax over all their tokens at each place,
    the mean over places, the mean over a word's tokens, and a point for the largest. The layer's
    output stays as it is.

    Attributes:
        rows: the rows of the batch that get points.
        words: for each concept the keys of its words, each (heads, tokens, channels).
        points: (heads, concepts), how often each concept had the largest share.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.rows: tuple[slice, ...] = ()
        self.words: Sequence[Sequence[Tensor]] = ()
        self.points: Tensor | None = None

    @torch.no_grad()
    def observe(self, call: AttentionCall) -> None:
        """Add the points of each recorded row."""
        if self.points is None:
            return
        queries = torch.cat([call.query[span] for span in self.rows]).float() * call.scale
        shares = competed(queries, [self._drawn(words) for words in self.words])
        first = shares.argmax(-1).cpu()  # (rows, heads)
        for concept in range(len(self.words)):
            self.points[:, concept] += (first == concept).sum(0)

    def _drawn(self, words: Sequence[Tensor]) -> Tensor:
        n = int(torch.randint(len(words), (), generator=self.generator))
        return words[n]


def competed(queries: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """Return each concept's mean share over places and its word's tokens.

    Args:
        queries: (rows, heads, places, channels), multiplied by the attention's scale.
        keys: a word's keys for each concept, (heads, tokens, channels).

    Returns:
        (rows, heads, concepts)
    """
    probs = (queries @ torch.cat(list(keys), 1).float().transpose(-1, -2)).softmax(-1)
    parts = probs.mean(2).split([key.shape[1] for key in keys], -1)  # (rows, heads, tokens) each
    return torch.stack([part.mean(-1) for part in parts], -1)
