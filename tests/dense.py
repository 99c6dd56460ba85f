"""Prompt-to-prompt with every probability written out, to hold the library to its definitions.

Written from the definitions alone (Hertz et al. 2022), token by token, slow and plain. It shares no
code with ``xattn`` but the tokenised prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.prompts import Prompt

Window = tuple[float, float]


@dataclass
class Blend:
    source: Sequence[int] = ()
    target: Sequence[int] = ()
    source_less: Sequence[int] = ()
    target_less: Sequence[int] = ()
    threshold: float = 0.3
    start: float = 0.2
    mask: Tensor | None = None


@dataclass
class Sibling:
    """How a sibling takes its attention: for each token n the source tokens and their shares."""

    partners: list[dict[int, float] | None]
    cross: Window = (0.0, 0.8)
    self_: Window = (0.0, 0.4)
    word_windows: dict[int, Window] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    blend: Blend | None = None


def identity(length: int = 77) -> list[dict[int, float] | None]:
    return [{n: 1.0} for n in range(length)]


def by_words(source: Prompt, target: Prompt) -> list[dict[int, float] | None]:
    """Word by word: s tokens onto t tokens 1/t each, or one by one where there are as many."""
    partners: list[dict[int, float] | None] = [None] * target.length
    partners[0] = {0: 1.0}
    for one, two in zip(source.words, target.words, strict=True):
        for k, n in enumerate(two.positions):
            if len(one.positions) == len(two.positions):
                partners[n] = {one.positions[k]: 1.0}
            else:
                partners[n] = {w: 1.0 / len(two.positions) for w in one.positions}
    assert source.end is not None
    assert target.end is not None
    for k in range(target.length - target.end):
        if source.end + k < source.length:
            partners[target.end + k] = {source.end + k: 1.0}
    return partners


def by_insertion(source: Prompt, target: Prompt) -> list[dict[int, float] | None]:
    """For prompts that differ by insertions: what is common stays, the rest has no partner."""
    partners: list[dict[int, float] | None] = [None] * target.length
    assert source.end is not None
    assert target.end is not None
    one = [-1, *(t.id for t in source.tokens), -2]
    two = [-1, *(t.id for t in target.tokens), -2]
    for match in SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks():
        for k in range(match.size):
            partners[match.b + k] = {match.a + k: 1.0}
    for n in range(max(source.end, target.end) + 1, target.length):
        partners[n] = {n: 1.0}
    return partners


def inside(step: int, steps: int, window: Window) -> bool:
    return round(window[0] * steps, 6) <= step < round(window[1] * steps, 6)


def edited(source: Tensor, own: Tensor, sibling: Sibling, step: int, steps: int) -> Tensor:
    """Gives e · (c · A M + (1 - c) · B), column by column; (..., queries, tokens)."""
    columns = []
    for n in range(own.shape[-1]):
        window = sibling.word_windows.get(n, sibling.cross)
        partners = sibling.partners[n]
        column = own[..., n]
        if partners is not None and inside(step, steps, window):
            column = torch.zeros_like(column)
            for w, share in partners.items():
                column = column + share * source[..., w]
        columns.append(sibling.weights.get(n, 1.0) * column)
    return torch.stack(columns, dim=-1)


@dataclass
class Dense:
    """Runs a pipeline with explicit attention; rows are prompt-major, one image each.

    Attributes:
        siblings: how each follows the source.
        steps: of the schedule.
        step_of_call: for each denoiser call, its step.
        latent: height and width of the latents.
    """

    siblings: list[Sibling]
    steps: int
    latent: tuple[int, int]
    step_of_call: Callable[[int], int] = lambda call: call
    calls_of_step: Callable[[int], int] = lambda step: 1
    guided: bool = True
    call: int = -1

    def __post_init__(self) -> None:
        self.area = max(256, (self.latent[0] // 4) * (self.latent[1] // 4))
        self.maps: dict[int, list[Tensor]] = {}
        self.masks: list[list[Tensor]] = [[] for _ in self.siblings]

    def attend(self, probs: Tensor, is_cross: bool) -> Tensor:
        """Gives (batch, heads, queries, tokens) edited."""
        rows = len(self.siblings) + 1
        first = rows if self.guided else 0
        step = self.step_of_call(self.call)
        out = [probs[i] for i in range(len(probs))]
        for j, sibling in enumerate(self.siblings):
            row = first + 1 + j
            if is_cross:
                out[row] = edited(probs[first], probs[row], sibling, step, self.steps)
            elif probs.shape[2] <= self.area and inside(step, self.steps, sibling.self_):
                out[row] = probs[first]
        result = torch.stack(out)
        if is_cross and probs.shape[2] == self.area:
            heads = result[first : first + rows].mean(1)
            self.maps.setdefault(step, []).append(heads / self.calls_of_step(step))
        return result

    def blend(self, latents: Tensor, step: int, layers: int) -> Tensor:
        out = [latents[0]]
        total = sum(torch.stack(self.maps[s]).sum(0) for s in range(step + 1)) / layers
        for j, sibling in enumerate(self.siblings):
            mine, how = latents[j + 1], sibling.blend
            if how is None or step < how.start * self.steps - 1e-6:
                out.append(mine)
                continue
            assert isinstance(total, Tensor)

            def where(row: int, tokens: Sequence[int], top: float, total: Tensor = total) -> Tensor:
                if not tokens:
                    return torch.zeros(self.latent, dtype=torch.bool)
                scale = round((self.latent[0] * self.latent[1] / self.area) ** 0.5)
                heat = sum(total[row][:, n] for n in tokens)
                assert isinstance(heat, Tensor)
                heat = heat.reshape(1, 1, self.latent[0] // scale, self.latent[1] // scale)
                heat = F.max_pool2d(heat, 3, 1, 1).repeat_interleave(scale, 2)
                heat = heat.repeat_interleave(scale, 3)[0, 0]
                return heat / heat.max() > top

            if how.mask is None:
                mask = where(0, how.source, how.threshold) | where(j + 1, how.target, how.threshold)
            else:
                mask = how.mask
            mask = mask & ~where(0, how.source_less, how.threshold)
            mask = mask & ~where(j + 1, how.target_less, how.threshold)
            self.masks[j].append(mask)
            out.append(latents[0] + mask * (mine - latents[0]))
        return torch.stack(out)

    def run(self, pipe: Any, prompts: list[str], seed: int, **kwargs: Any) -> Tensor:
        """Gives the latents of the source and its siblings."""
        self.call = -1
        before = dict(pipe.unet.attn_processors)
        layers = sum(name.endswith("attn2.processor") for name in before)
        pipe.unet.set_attn_processor({name: Explicit(self) for name in before})

        def count(*_: Any) -> None:
            self.call += 1

        def callback(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step = self.step_of_call(index)
            last = self.step_of_call(index + 1) != step
            if last and any(s.blend for s in self.siblings):
                middle = len(self.maps[step]) // self.calls_of_step(step)
                tensors["latents"] = self.blend(tensors["latents"], step, middle)
            return tensors

        hook = pipe.unet.register_forward_pre_hook(count)
        try:
            result = pipe(
                prompts,
                generator=[torch.Generator().manual_seed(seed) for _ in prompts],
                callback_on_step_end=callback,
                output_type="latent",
                **kwargs,
            ).images
        finally:
            hook.remove()
            pipe.unet.set_attn_processor(before)
        assert layers
        assert isinstance(result, Tensor)
        return result


class Explicit:
    """Attention with its probabilities in the open."""

    def __init__(self, dense: Dense) -> None:
        self.dense = dense

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def split(states: Tensor) -> Tensor:
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        query, key, value = split(query), split(key), split(value)
        probs = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        probs = self.dense.attend(probs, encoder_hidden_states is not None)
        out = (probs @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))
