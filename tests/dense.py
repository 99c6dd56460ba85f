"""Prompt-to-prompt with every probability written out, to hold the library to its definitions.

Written from the definitions alone (Hertz et al. 2022), token by token, slow and plain. It shares no
code with ``xattn`` but the tokenised prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from math import ceil, log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xattn.text.prompt import Prompt

Window = tuple[float, float]
Partners = list[dict[int, float] | None]
"""For each token of the target the source tokens it takes from and their shares; None: its own."""


@dataclass
class Blend:
    """Where an edit may act: token positions in both prompts, or a mask on the latent grid."""

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

    partners: Partners
    cross: Window = (0.0, 0.8)
    self_: Window = (0.0, 0.4)
    word_windows: dict[int, Window] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    blend: Blend | None = None


def identity(length: int = 77) -> Partners:
    return [{n: 1.0} for n in range(length)]


def by_words(source: Prompt, target: Prompt) -> Partners:
    """Word by word: s tokens onto t tokens 1/t each, or one by one where there are as many."""
    partners: Partners = [None] * target.length
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


def by_insertion(source: Prompt, target: Prompt) -> Partners:
    """For prompts that differ by insertions: what is common stays, the rest has no partner."""
    partners: Partners = [None] * target.length
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


def by_reference(source: Prompt, target: Prompt) -> Partners:
    """As ``by_words``, but behind the last word that differs position j takes from position j.

    That is what the paper's code writes; where the target is shorter, its loop over the source ends
    before the last columns, which are left without any attention.
    """
    partners = by_words(source, target)
    pairs = list(zip(source.words, target.words, strict=True))
    last = max(i for i, (one, two) in enumerate(pairs) if one.text != two.text)
    behind = pairs[last][1].positions[-1] + 1
    shift = max(0, pairs[last][0].positions[-1] + 1 - behind)
    for n in range(behind, target.length):
        partners[n] = {n: 1.0} if n < target.length - shift else {}
    return partners


def by_alignment(source: Prompt, target: Prompt) -> Partners:
    """The most tokens in common, in order: a mismatch costs 1 and a gap nothing, so none is paired.

    For prompts that leave no choice: the best alignment is found by trying all, and must be one.
    """
    one = [-1, *(t.id for t in source.tokens), -2]
    two = [-1, *(t.id for t in target.tokens), -2]

    @cache
    def best(i: int, j: int) -> frozenset[tuple[tuple[int, int], ...]]:
        if i == len(one) or j == len(two):
            return frozenset([()])
        found = set(best(i + 1, j) | best(i, j + 1))
        if one[i] == two[j]:
            found |= {((i, j), *rest) for rest in best(i + 1, j + 1)}
        most = max(map(len, found))
        return frozenset(pairs for pairs in found if len(pairs) == most)

    (pairs,) = best(0, 0)
    assert source.end is not None
    assert target.end is not None
    partners: Partners = [None] * target.length
    for i, j in pairs:
        partners[j] = {i: 1.0}
    for n in range(max(source.end, target.end) + 1, target.length):
        partners[n] = {n: 1.0}
    return partners


def then(first: Partners, second: Partners) -> Partners:
    """One edit behind another: a token takes from whatever its partners took from."""
    partners: Partners = []
    for column in second:
        found: dict[int, float] | None = {}
        for middle, share in (column or {}).items():
            before = first[middle]
            if before is None or found is None:
                found = None
                continue
            for n, more in before.items():
                found[n] = found.get(n, 0.0) + share * more
        partners.append(None if column is None else found)
    return partners


def on_latents(mask: Tensor, scale: int) -> Tensor:
    """A mask in pixels on the latent grid: the most of the pixels that a latent covers."""
    height, width = mask.shape[0] // scale, mask.shape[1] // scale
    out = torch.zeros(height, width, dtype=mask.dtype)
    for y in range(height):
        for x in range(width):
            out[y, x] = mask[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale].max()
    return out


def inside(step: int, steps: int, window: Window) -> bool:
    return round(window[0] * steps, 6) <= step < round(window[1] * steps, 6)


def factors(
    sibling: Sibling, step: int, steps: int, source: Tensor, own: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute M, (source tokens, tokens), and for each token c and e."""
    length = own.shape[-1]
    mapping = own.new_zeros(source.shape[-1], length)  # M
    follows = own.new_zeros(length)  # c
    for n, partners in enumerate(sibling.partners):
        window = sibling.word_windows.get(n, sibling.cross)
        follows[n] = partners is not None and inside(step, steps, window)
        for w, share in (partners or {}).items():
            mapping[w, n] = share
    weights = torch.tensor([sibling.weights.get(n, 1.0) for n in range(length)]).to(own)  # e
    return mapping, follows, weights


def edited(source: Tensor, own: Tensor, how: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compute e · (c · A M + (1 - c) · B); (..., queries, tokens)."""
    mapping, follows, weights = how
    return weights * (follows * (source @ mapping) + (1 - follows) * own)


@dataclass
class Dense:
    """Runs a pipeline with explicit attention; rows are prompt-major.

    Attributes:
        siblings: how each follows the source.
        steps: of the schedule.
        latent: height and width of the latents.
        step_of_call: for each denoiser call, its step.
        calls_of_step: how many there are in a step.
        guided: whether the unconditional rows come first.
        images: of each prompt.
        side: self-attention follows in layers of at most side x side queries.
        masks: for each sibling and image, and each step from its LocalBlend's start, the mask.
    """

    siblings: list[Sibling]
    steps: int
    latent: tuple[int, int]
    step_of_call: Callable[[int], int] = lambda call: call
    calls_of_step: Callable[[int], int] = lambda step: 1
    guided: bool = True
    images: int = 1
    side: int | None = None
    call: int = -1

    def __post_init__(self) -> None:
        self.most = max(256, ceil(self.latent[0] / 4) * ceil(self.latent[1] / 4))
        if self.side is not None:
            self.most = self.side * self.side
        self.factors: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}  # of each sibling and step
        self.maps: dict[int, dict[int, list[Tensor]]] = {}  # of each step and number of queries
        self.masks: list[list[Tensor]] = [[] for _ in self.siblings for _ in range(self.images)]

    def attend(self, probs: Tensor, is_cross: bool) -> Tensor:
        """Return (batch, heads, queries, tokens) edited."""
        rows = (len(self.siblings) + 1) * self.images
        first = rows if self.guided else 0
        step = self.step_of_call(self.call)
        if not is_cross and probs.shape[2] > self.most:
            return probs
        out, known = list(probs), self.factors
        for j, sibling in enumerate(self.siblings):
            for i in range(self.images):
                source, row = first + i, first + (j + 1) * self.images + i
                if is_cross:
                    one, own = probs[source], probs[row]
                    if (j, step, own.dtype) not in known:
                        known[j, step, own.dtype] = factors(sibling, step, self.steps, one, own)
                    out[row] = edited(one, own, known[j, step, own.dtype])
                elif inside(step, self.steps, sibling.self_):
                    out[row] = probs[source]
        result = torch.stack(out)
        if is_cross:
            heads = result[first : first + rows].mean(1)
            layers = self.maps.setdefault(step, {}).setdefault(probs.shape[2], [])
            layers.append(heads / self.calls_of_step(step))
        return result

    def heat(self, step: int) -> Tensor:
        """Return the maps of the middle resolution up to a step, (rows, queries, tokens)."""
        queries = min(self.maps[step], key=lambda n: abs(log(n / self.most)))
        layers = len(self.maps[step][queries]) // self.calls_of_step(step)
        total = sum(torch.stack(self.maps[s][queries]).sum(0) for s in range(step + 1)) / layers
        assert isinstance(total, Tensor)
        return total

    def where(self, heat: Tensor, tokens: Sequence[int], threshold: float) -> Tensor:
        """Return where some tokens act in a row's (queries, tokens)."""
        if not tokens:
            return torch.zeros(self.latent, dtype=torch.bool)
        scale = round((self.latent[0] * self.latent[1] / len(heat)) ** 0.5)
        word = sum(heat[:, n] for n in tokens)
        assert isinstance(word, Tensor)
        word = word.reshape(1, 1, self.latent[0] // scale, self.latent[1] // scale)
        word = F.max_pool2d(word, 3, 1, 1).repeat_interleave(scale, 2)
        word = word.repeat_interleave(scale, 3)[0, 0]
        return word / word.max() > threshold

    def blend(self, latents: Tensor, step: int) -> Tensor:
        out = list(latents[: self.images])
        heat = self.heat(step)
        for row in range(self.images, len(latents)):
            origin, mine = row % self.images, latents[row]
            how = self.siblings[row // self.images - 1].blend
            if how is None or step < how.start * self.steps - 1e-6:
                out.append(mine)
                continue
            mask = how.mask
            if mask is None:
                mask = self.where(heat[origin], how.source, how.threshold)
                mask = mask | self.where(heat[row], how.target, how.threshold)
            mask = mask * ~self.where(heat[origin], how.source_less, how.threshold)
            mask = mask * ~self.where(heat[row], how.target_less, how.threshold)
            self.masks[row - self.images].append(mask)
            out.append(latents[origin] + mask.to(mine.dtype) * (mine - latents[origin]))
        return torch.stack(out)

    def run(self, pipe: Any, prompts: list[str], *seeds: int, **kwargs: Any) -> Tensor:
        """Return the latents of the source and its siblings; a seed for each image."""
        self.call = -1
        before = dict(pipe.unet.attn_processors)
        pipe.unet.set_attn_processor({name: Explicit(self) for name in before})

        def callback(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step = self.step_of_call(index)
            last = self.step_of_call(index + 1) != step
            if last and any(s.blend for s in self.siblings):
                tensors["latents"] = self.blend(tensors["latents"], step)
            return tensors

        hook = pipe.unet.register_forward_pre_hook(self._count)
        try:
            result = pipe(
                prompts,
                num_images_per_prompt=self.images,
                generator=[torch.Generator().manual_seed(seed) for _ in prompts for seed in seeds],
                callback_on_step_end=callback,
                output_type="latent",
                **kwargs,
            ).images
        finally:
            hook.remove()
            pipe.unet.set_attn_processor(before)
        assert isinstance(result, Tensor)
        return result

    @contextmanager
    def beside(self, pipe: Any) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
        """Computes each attention layer's output a second time, from what the layer was given.

        Yields:
            For each call of a layer its name, what it gave, and what the definitions give.
        """
        self.call = -1
        calls: list[tuple[str, Tensor, Tensor]] = []
        explicit = Explicit(self)
        hooks = [pipe.unet.register_forward_pre_hook(self._count)]
        for name, module in pipe.unet.named_modules():
            if name.endswith(("attn1", "attn2")):

                def compare(
                    attn: Any, args: Any, kwargs: dict[str, Any], got: Tensor, name: str = name
                ) -> None:
                    text = kwargs.get("encoder_hidden_states")
                    calls.append((name, got, explicit(attn, args[0], text)))

                hooks.append(module.register_forward_hook(compare, with_kwargs=True))
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, *_: Any) -> None:
        self.call += 1


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
