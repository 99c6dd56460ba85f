"""The handlers of one layer, and how a call passes through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler, Locate, ScoresCall
from xattn.processors.image_prompt import AddedHandler


class Chain:
    """The handlers of one layer, in order: a later one sees the effect of the earlier ones.

    Attributes:
        name: the layer's name.
        heads: the layer's number of heads.
        nth: index of the attention call to handle; the layer's other calls run unchanged.
        rowwise: whether the layer makes a call for each row of the batch, all of them handled.
        live: whether any handler is live; otherwise the layer runs unchanged.
        over: whether the chain has ended for good, and its wrapper can be removed.
        locate: finder of the places of text and image in the current denoiser call.
    """

    def __init__(
        self,
        name: str,
        heads: int,
        handlers: Sequence[Handler],
        nth: int = 0,
        rowwise: bool = False,
    ) -> None:
        self.name = name
        self.heads = heads
        self.handlers = tuple(handlers)
        self.nth = nth
        self.rowwise = rowwise
        self.live = False
        self.over = False
        self.locate: Locate | None = None
        self._parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._scored = 0

    def wake(self) -> None:
        """Handle the next call, if a handler is live."""
        self.live = any(handler.live for handler in self.handlers)

    def sleep(self) -> None:
        """Run the layer unchanged until a handler is live again."""
        self.live = False
        for handler in self.handlers:
            handler.live = handler.seen = False

    @property
    def blind(self) -> bool:
        """Whether a live handler missed the current call."""
        return any(handler.live and not handler.seen for handler in self.handlers)

    @property
    def edits(self) -> bool:
        """Whether a live handler may change the call."""
        return any(handler.live and handler.edits for handler in self.handlers)

    def opened(self) -> None:
        """Begin a call of the layer: discard leftovers of an interrupted one."""
        self._parts = []
        self._scored = 0

    def attend(self, call: AttentionCall) -> Tensor:
        """Return the layer's output, after all handlers."""
        return self._handled(call).output()

    def attend_added(self, call: AttentionCall, number: int) -> Tensor:
        """Return the output of the nth call behind the handled one, shown to who asks for it."""
        found = call.output()
        for handler in self.handlers:
            if handler.live and isinstance(handler, AddedHandler):
                handler.observe_added(call, number)
        return found

    @property
    def watches_added(self) -> bool:
        """Whether a live handler receives the calls behind the handled one."""
        return any(h.live and isinstance(h, AddedHandler) for h in self.handlers)

    def scores(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        batch: int,
        compute: Callable[..., Tensor],
    ) -> Tensor:
        """Return probabilities (some of batch x heads, queries, keys) for an explicit processor.

        A sliced processor calls several times, with consecutive rows each; the handlers get them
        together after the last one. What comes behind the text's rows is IP-Adapter's.
        """
        if self._scored >= batch * self.heads:
            return compute(query, key, mask)
        self._scored += len(query)
        if len(query) == batch * self.heads:
            return self._handled(
                ScoresCall(query, key, mask, scale, self.heads, compute, self.locate)
            ).scores()
        if self.edits:
            raise TypeError(
                f"layer {self.name} computes attention slice by slice, but edits need the source "
                "next to its siblings; call pipe.disable_attention_slicing() first"
            )
        self._parts.append((query, key, mask))
        if sum(len(part[0]) for part in self._parts) >= batch * self.heads:
            queries, keys = (torch.cat([part[i] for part in self._parts]) for i in (0, 1))  # type: ignore[misc]
            masks = [part[2] for part in self._parts if part[2] is not None]
            whole = torch.cat(masks) if masks else None
            self._handled(ScoresCall(queries, keys, whole, scale, self.heads, compute, self.locate))
            self._parts = []
        return compute(query, key, mask)

    def _handled(self, call: AttentionCall) -> AttentionCall:
        for handler in self.handlers:
            if handler.live:
                call = handler.transform(call)
                handler.seen = True
        return call
