"""The two methods as their papers state them, for comparison: plain, dense, not optimized.

``recording`` is Tang et al. 2023, section 3: an explicit softmax in every layer, and the
cross-attention maps of every layer and step appended to a list. ``replacing`` is Hertz et al.
2022, section 3: explicit probabilities in every layer, the targets' replaced by the source's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Explicit:
    """An attention processor with an explicit softmax; ``change`` may act on its probabilities."""

    def __init__(self, cross: bool) -> None:
        self.cross = cross

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Compute attention like the model."""
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(text))
        value = attn.head_to_batch_dim(attn.to_v(text))  # (batch x heads, tokens, channels)
        scores = query @ key.transpose(1, 2) * attn.scale
        probs = self.change(scores.softmax(-1), attn.heads)
        out: Tensor = attn.to_out[0](attn.batch_to_head_dim(probs @ value))
        return out

    def change(self, probs: Tensor, heads: int) -> Tensor:
        """Return the probabilities to use, (batch x heads, queries, tokens)."""
        return probs


class Keeping(Explicit):
    """A processor that appends cross-attention to a list."""

    def __init__(self, cross: bool, kept: list[Tensor]) -> None:
        super().__init__(cross)
        self.kept = kept

    def change(self, probs: Tensor, heads: int) -> Tensor:
        """Append all cross-attention probabilities."""
        if self.cross:
            self.kept.append(probs.detach().cpu())
        return probs


class Replacing(Explicit):
    """Replace the one target's probabilities by the source's, while ``on`` is set.

    The batch is [negative, negative, source, target].
    """

    def __init__(self, cross: bool, on: dict[str, bool], most: int) -> None:
        super().__init__(cross)
        self.on = on
        self.most = most

    def change(self, probs: Tensor, heads: int) -> Tensor:
        """Replace the words' maps, and self-attention with few enough queries."""
        replaced = self.on["cross"] if self.cross else self.on["self"]
        if not replaced or (not self.cross and probs.shape[1] > self.most):
            return probs
        parts = list(probs.unflatten(0, (-1, heads)))  # 4 of (heads, queries, tokens)
        if self.cross:
            swap = torch.eye(probs.shape[-1], dtype=probs.dtype)  # word by word
            parts[3] = torch.einsum("hqw,wn->hqn", parts[2], swap)
        else:
            parts[3] = parts[2]
        return torch.stack(parts).flatten(0, 1)


@contextmanager
def recording(pipe: Any) -> Iterator[list[Tensor]]:
    """Yield the list of each layer's (batch x heads, queries, tokens)."""
    kept: list[Tensor] = []
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({n: Keeping(".attn2." in n, kept) for n in before})
    try:
        yield kept
    finally:
        pipe.unet.set_attn_processor(before)


@contextmanager
def replacing(
    pipe: Any, steps: int, *, cross_steps: float = 0.8, self_steps: float = 0.4, side: int = 16
) -> Iterator[None]:
    """Edit a batch of a source and one target, for the given shares of the steps."""
    on = {"cross": cross_steps > 0, "self": self_steps > 0}
    done = 0

    def after(*_: Any) -> None:
        nonlocal done
        done += 1
        on.update(cross=done < cross_steps * steps, self=done < self_steps * steps)

    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({n: Replacing(".attn2." in n, on, side**2) for n in before})
    hook = pipe.unet.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()
        pipe.unet.set_attn_processor(before)
