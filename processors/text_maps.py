"""What the text's queries give to the image, in joint attention."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.processors.call import AttentionCall, Place, alike
from xattn.processors.probabilities import Tokens, kept_maps, log_sums


def text_maps(call: AttentionCall, rows: slice, tokens: Tokens) -> Tensor:
    """Return some text tokens' probabilities over all keys, at those of the image's grid.

    Args:
        call: a layer's joint attention.
        rows: rows of the batch.
        tokens: positions on the token axis.

    Returns:
        float32 (rows, heads, tokens, cells)

    Raises:
        RuntimeError: the text has no queries in this call.
    """
    places = call.places
    if places is None:
        raise RuntimeError("the text has no queries here: only joint attention has")
    return torch.cat([_at(call, span, place, tokens) for span, place in alike(places, rows)])


def _at(call: AttentionCall, rows: slice, place: Place, tokens: Tokens) -> Tensor:
    text = place.text
    count = text.stop - text.start if isinstance(text, slice) else len(text)
    chosen = _indices(tokens, count, call.query.device)
    inside = chosen.clamp(max=count - 1)  # a short row has no text behind its end
    at = inside + text.start if isinstance(text, slice) else text[inside]
    query, key, mask, sums = call.query[rows], call.key[rows], call.mask_of(rows), call.sums(rows)
    query = query.index_select(2, at)
    if mask is not None and mask.shape[-2] > 1:
        mask = mask.index_select(-2, at)
    known = log_sums(query, key, mask, call.scale) if sums is None else sums.index_select(2, at)
    maps = kept_maps(query, key, call.scale, known, place.own, mask)
    return maps.transpose(-1, -2) * (chosen < count)[:, None]


def _indices(tokens: Tokens, count: int, device: torch.device) -> Tensor:
    """Return positions as indices; a slice's may lie behind the last of ``count``."""
    if not isinstance(tokens, slice):
        return tokens
    stop = count if tokens.stop is None else tokens.stop
    return torch.arange(tokens.start or 0, stop, device=device)
