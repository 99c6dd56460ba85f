"""Scores of texts that were not prompted, in one layer's attention call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler
from xattn.processors.probabilities import kept_probs


class TextKeys(Handler):
    """Write where other texts would act, had they been the keys (Marcos-Manchon et al. 2024).

    The queries are those of the run, so the layer's output and every other map stay as they are.
    Two maps of each concept are written: "attention", its probabilities among the tokens of its
    own text, and "competition", in each head these times the concept's share among all concepts,
    a softmax over the concepts' logits.

    Attributes:
        rows: the recorded rows of the batch.
        keys: for each concept its text's keys, (heads, tokens, channels).
        tokens: for each concept the tokens of its words.
        buffers: (images, 1, concepts, height, width), float32, of the two maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[slice, ...] = ()
        self.keys: Sequence[Tensor] = ()
        self.tokens: Sequence[Tensor] = ()
        self.buffers: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def observe(self, call: AttentionCall) -> None:
        """Write the means over heads and tokens of each concept."""
        if not self.buffers:
            return
        queries = torch.cat([call.query[span] for span in self.rows]).float() * call.scale
        probs, logits = [], []
        for key, tokens in zip(self.keys, self.tokens, strict=True):
            scores = queries @ key.float().transpose(-1, -2)  # (images, heads, queries, tokens)
            probs.append(scores.softmax(-1)[..., tokens].mean(-1))
            logits.append(scores[..., tokens].mean(-1))
        attention = torch.stack(probs, 2)  # (images, heads, concepts, queries)
        shares = torch.stack(logits, 2).softmax(2)
        for buffer, maps in zip(self.buffers, (attention, attention * shares), strict=True):
            buffer[: len(queries), 0].flatten(-2).copy_(maps.mean(1))


class ConceptStream(Handler):
    """Write how much the image's outputs look like those of concepts (Helbling et al. 2025).

    A concept's output is that of its own stream, which attends to the image and to the other
    concepts; the image never attends to it. Before the layer's own call, the instrument runs the
    block once more for the concepts, with ``asking`` set.

    Attributes:
        rows: the recorded rows of the batch.
        asking: whether the current call is the concepts'.
        count: number of concepts.
        image_first: whether the image stands before the text.
        outputs: the concepts' outputs, (images, heads, concepts, channels).
        attended: the image's probabilities on them, (images, concepts, queries).
        buffers: (images, 1, concepts, height, width), float32: of "attention", the image's
            probabilities on the concepts, and "output", proportional to exp(o_image . o_concept).
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[slice, ...] = ()
        self.asking = False
        self.count = 0
        self.image_first = True
        self.outputs: Tensor | None = None
        self.attended: Tensor | None = None
        self.buffers: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def observe(self, call: AttentionCall) -> None:
        """Keep the concepts' outputs, or compare the image's with them."""
        if self.buffers and self.asking:
            self._keep(call)
        elif self.buffers and self.outputs is not None:
            self._compare(call)

    def _keep(self, call: AttentionCall) -> None:
        image = call.query.shape[2] - self.count
        own, others = slice(image, None), slice(0, image)
        if not self.image_first:
            own, others = slice(0, self.count), slice(self.count, None)
        self.outputs = call.output()[:, :, own].float()
        positions = torch.arange(call.query.shape[2], device=call.query.device)[own]
        probs = kept_probs(call.query[:, :, others], call.key, call.mask, call.scale, positions)
        self.attended = probs.mean(1).transpose(1, 2)  # (images, concepts, queries)

    def _compare(self, call: AttentionCall) -> None:
        places, span = call.places, self.rows[0]
        assert places is not None
        assert self.outputs is not None
        assert self.attended is not None
        queries = places[span.start].queries
        mine = call.output()[span][:, :, queries].float()
        scores = torch.einsum("ihqd,ihcd->icq", mine, self.outputs)
        # only ratios of concepts count; shifted, no exponential overflows
        relative = (scores - scores.amax(1, keepdim=True)).exp()
        for buffer, maps in zip(self.buffers, (self.attended, relative), strict=True):
            cells = buffer[0, 0, 0].numel()
            buffer[: len(maps), 0].flatten(-2).copy_(maps[..., :cells])
        self.outputs = self.attended = None
