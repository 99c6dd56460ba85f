"""Weigher: words made weaker or stronger in some heads, in every run of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch

from xattn.edits.plan import EditPlan
from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.processors.weighting import Weighting
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling
from xattn.text.prompt import WordError


class Weigher(Instrument):
    """Multiply what some heads take from some words.

    Args:
        heads: heads of each layer, by its name.
        words: the words or phrases; those that a prompt lacks are passed over. None for every
            word of a prompt.
        weight: the factor: 0 takes the words away from these heads, 1 changes nothing.
    """

    def __init__(
        self, heads: Mapping[str, Sequence[int]], words: Sequence[str] | None, weight: float
    ) -> None:
        self.heads, self.words, self.weight = dict(heads), words, weight
        self.layers: dict[AttentionLayer, Weighting] = {}

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer with a head that is weighed.

        Raises:
            ValueError: a layer or a head does not exist.
        """
        known = {layer.name: layer for layer in layers}
        for name, heads in self.heads.items():
            count = known[name].heads if name in known else 0
            if not all(0 <= head < count for head in heads):
                raise ValueError(
                    f"heads: {name!r} with {list(heads)} is not a layer with these heads; the "
                    f"layers are: {', '.join(known)}"
                )
        chosen = {} if self.weight == 1 else self.heads
        self.layers = {known[name]: Weighting() for name, heads in chosen.items() if heads}
        return self.layers

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Lay out the factors of each row."""
        if call.component:
            return
        tokens = sampling.asked.length or (0 if call.states is None else call.states.shape[1])
        for layer, handler in self.layers.items():
            factors = torch.ones(call.rows, layer.heads, tokens, device=sampling.device)
            heads = list(self.heads[layer.name])
            for rows in call.conditional:
                for image, row in enumerate(range(rows.start, rows.stop)):
                    places = self._places(sampling, image)
                    for head in heads:
                        factors[row, head, places] = self.weight
            handler.factors, handler.live = factors, True

    def end(self, sampling: Sampling) -> None:
        """Release the factors."""
        for handler in self.layers.values():
            handler.factors = None

    def _places(self, sampling: Sampling, image: int) -> list[int]:
        prompt = sampling.asked.prompts[sampling.asked.prompt_of[image]]
        if self.words is None:
            return list(prompt.own_positions)
        found: set[int] = set()
        for word in self.words:
            with suppress(WordError):
                found.update(prompt.positions(word))
        return sorted(found)


class HeadWeigher(Weigher):
    """Weigh words of siblings in single heads, as a plan says; it runs before the editor.

    Args:
        plan: the plan of the edits; the batch is prompt-major.
        alone: whether the batch is the siblings alone, of a kept source.
    """

    def __init__(self, plan: EditPlan, *, alone: bool = False) -> None:
        super().__init__({}, None, 0.0)
        self.plan = plan
        self.alone = alone
        self.heads = {
            name: sorted({*self.heads.get(name, ()), *heads})
            for sibling in plan.siblings
            for weight in sibling.heads
            for name, heads in weight.heads.items()
        }

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Lay out the factors of each sibling's rows."""
        if call.component:
            return
        first = 0 if self.alone else 1
        images = sampling.images // (len(self.plan.siblings) + first)
        start = call.conditional[0].start + first * images
        for layer, handler in self.layers.items():
            factors = torch.ones(call.rows, layer.heads, self.plan.length, device=sampling.device)
            for n, sibling in enumerate(self.plan.siblings):
                rows = slice(start + n * images, start + (n + 1) * images)
                for weight in sibling.heads:
                    for head in weight.heads.get(layer.name, ()):
                        factors[rows, head, list(weight.positions)] = weight.weight
            handler.factors, handler.live = factors, True
