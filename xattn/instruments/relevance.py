"""HeadPoints: which concept each head attends to most, among words that nobody prompted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from xattn.instruments.concepts import Concept, keys_of
from xattn.models.family import AttentionLayer, DenoiserCall, choose
from xattn.processors.call import Handler
from xattn.processors.relevance import Relevance
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class HeadPoints(Instrument):
    """Count in each head of each cross-attention layer which concept has the largest share.

    Args:
        concepts: the encoded words of each concept.
        seed: of which word stands for a concept in a call.
    """

    def __init__(self, concepts: Sequence[Sequence[Concept]], seed: int = 0) -> None:
        self.concepts = concepts
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: dict[AttentionLayer, Relevance] = {}

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer whose keys are text alone."""
        own = choose([layer for layer in layers if not layer.component], None)
        kept = self.layers
        self.layers = {layer: Relevance(self.generator) for layer in own if layer.role == "cross"}
        for layer, handler in self.layers.items():
            before = next((each for known, each in kept.items() if known.name == layer.name), None)
            shape = (layer.heads, len(self.concepts))
            points = torch.zeros(shape, dtype=torch.long) if before is None else before.points
            handler.points = points
        return self.layers

    def begin(self, sampling: Sampling) -> None:
        """Compute the words' keys in each layer."""
        for layer, handler in self.layers.items():
            handler.words = [
                [keys_of(layer, word.states)[:, list(word.positions)] for word in words]
                for words in self.concepts
            ]

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the conditional rows."""
        for handler in () if call.component else self.layers.values():
            handler.live, handler.rows = True, call.conditional

    @property
    def points(self) -> dict[str, torch.Tensor]:
        """Points by layer, (heads, concepts)."""
        return {
            layer.name: handler.points
            for layer, handler in self.layers.items()
            if handler.points is not None
        }
