"""What an image prompt's tokens are given, in the calls that IP-Adapter adds to a layer's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Handler, Place


@dataclass(frozen=True)
class Source:
    """One image of an image prompt.

    Attributes:
        adapter: which of the adapters reads it.
        image: which of the adapter's images it is.
        tokens: its tokens on the axis of all image tokens.
    """

    adapter: int
    image: int
    tokens: slice

    @property
    def count(self) -> int:
        """Number of its tokens."""
        return int(self.tokens.stop - self.tokens.start)


@dataclass(frozen=True, eq=False)
class AddedCall:
    """One attention call to image tokens.

    Attributes:
        sources: indices of the images whose tokens are its keys, in their order.
        scale: what its output is multiplied by.
        mask: (1, height, width), the region that it is added in; None for everywhere.
    """

    sources: tuple[int, ...]
    scale: float
    mask: Tensor | None = None


class AddedHandler(Handler):
    """A handler that also receives the attention calls behind the one it handles."""

    def observe_added(self, call: AttentionCall, number: int) -> None:
        """Observe the nth call behind the layer's own, without changing it."""


class ImageKeys(AddedHandler):
    """Write one layer's attention to image tokens; leave its output unchanged.

    Two maps are written: each token's probabilities, and each image's share of what the layer's
    output is made of: the norm of what it adds to a head's output, over the sum of all norms,
    the text's among them (norms in place of weights: Kobayashi et al. 2020).

    Attributes:
        name: the layer's name.
        rows: the recorded rows of the batch, as slices.
        sources: the images.
        calls: the calls expected behind the layer's own.
        came: how many of them came.
        regions: a function that brings a mask to the queries.
        tokens: (images, heads or 1, tokens, height, width), float32, for probabilities.
        shares: (images, heads or 1, sources, height, width), float32.
    """

    def __init__(self, name: str, regions: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.name = name
        self.regions = regions
        self.rows: tuple[slice, ...] = ()
        self.sources: Sequence[Source] = ()
        self.calls: tuple[AddedCall, ...] = ()
        self.came = 0
        self.tokens: Tensor | None = None
        self.shares: Tensor | None = None
        self._norms: dict[int, Tensor] = {}
        self._text: Tensor | None = None

    @torch.no_grad()
    def observe(self, call: AttentionCall) -> None:
        """Keep the norm of what the text gives."""
        self.came, self._norms = 0, {}
        self._text = _norm(_of_rows(call.output(), self.rows))

    @torch.no_grad()
    def observe_added(self, call: AttentionCall, number: int) -> None:
        """Write the probabilities of a call's tokens and, after the last, all shares.

        Raises:
            RuntimeError: the layer makes other calls than its adapters' settings say.
        """
        if self.tokens is None or self._text is None:
            return
        added = self._expected(call, number)
        keys = sum(self.sources[n].count for n in added.sources)
        maps = self._maps(call, keys)  # (images, heads, tokens, queries)
        if added.mask is not None:
            maps = maps * self.regions(added.mask, maps.shape[-1]).to(maps)
        values = _of_rows(call.value, self.rows)[:, :, -keys:].float()
        start = 0
        for n in added.sources:
            source = self.sources[n]
            span = slice(start, start + source.count)
            start += source.count
            _write(self.tokens, source.tokens, maps[:, :, span])
            given = maps[:, :, span].transpose(-1, -2) @ values[:, :, span]
            self._norms[n] = added.scale * _norm(given)
        self.came = number + 1
        if self.came == len(self.calls):
            self._share()

    def _expected(self, call: AttentionCall, number: int) -> AddedCall:
        count = call.key.shape[2]
        if number < len(self.calls):
            known = sum(self.sources[n].count for n in self.calls[number].sources)
            if known == count:
                return self.calls[number]
        raise RuntimeError(
            f"layer {self.name} makes attention call {number + 1} behind the text's with {count} "
            f"keys, where {len(self.calls)} calls with the image prompt's tokens were expected; "
            "please report the adapter's configuration"
        )

    def _maps(self, call: AttentionCall, keys: int) -> Tensor:
        def located(queries: int, count: int) -> list[Place]:
            place = Place(slice(0, queries), slice(count - keys, count), slice(0, count - keys))
            return [place] * len(call.query)

        call.locate = located  # kept tokens alone, never all of queries x keys
        return torch.cat([call.maps(span, slice(None)) for span in self.rows])

    def _share(self) -> None:
        """Write each image's share of the norms."""
        assert self.shares is not None
        assert self._text is not None
        norms = torch.stack([self._norms[n] for n in sorted(self._norms)], 2)
        whole = (self._text + norms.sum(2)).clamp_min(torch.finfo(torch.float32).tiny)
        for place, n in enumerate(sorted(self._norms)):
            _write(self.shares, slice(n, n + 1), (norms[:, :, place] / whole)[:, :, None])
        self._text = None


def _of_rows(tensor: Tensor, rows: Sequence[slice]) -> Tensor:
    return torch.cat([tensor[span] for span in rows])


def _norm(given: Tensor) -> Tensor:
    """Return the norms over channels, float32 (images, heads, queries)."""
    found: Tensor = torch.linalg.vector_norm(given.float(), dim=-1)
    return found


def _write(buffer: Tensor, tokens: slice, maps: Tensor) -> None:
    """Write (images, heads, tokens, queries) at some of a buffer's tokens."""
    target = buffer[: len(maps), :, tokens].flatten(-2)
    target.copy_(maps.mean(1, keepdim=True) if buffer.shape[1] == 1 else maps)
