"""Recordings without a pipeline: a ``Run`` of made-up probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from xattn.records.run import Layer, MemoryStore, Run
from xattn.text.prompt import Prompt, Token

LAYERS = (
    Layer("down_blocks.0.attentions.0.transformer_blocks.0.attn2", (8, 12), 2),
    Layer("down_blocks.1.attentions.0.transformer_blocks.0.attn2", (4, 6), 2),
    Layer("mid_block.attentions.0.transformer_blocks.0.attn2", (1, 2), 2),
    Layer("up_blocks.1.attentions.0.transformer_blocks.0.attn2", (8, 12), 2),
)


def prompt(text: str, length: int = 77) -> Prompt:
    """Return a prompt with one token for each word."""
    tokens, at = [], 0
    for position, word in enumerate(text.split(), start=1):
        start = text.index(word, at)
        at = start + len(word)
        tokens.append(Token(position, 100 + position, word, start, at))
    return Prompt(text, tuple(tokens), length, end=len(tokens) + 1)


def make_run(
    texts: Sequence[str] = ("a red car on a lawn",),
    *,
    steps: int = 3,
    images: int = 1,
    layers: Sequence[Layer] = LAYERS,
    latent: tuple[int, int] = (8, 12),
    keep: Sequence[str] = ("step", "layer", "head"),
    words: Sequence[int] | None = None,
    done: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **other: Any,
) -> Run:
    """Return a run of random probabilities; ``images`` for each prompt."""
    g = torch.Generator().manual_seed(seed)
    prompts = tuple(prompt(text) for text in texts)
    prompt_of = tuple(p for p in range(len(prompts)) for _ in range(images))
    longest = max(len(p.tokens) for p in prompts)
    positions = tuple(range(1, longest + 1)) if words is None else tuple(words)
    done = steps if done is None else done
    tensors = []
    for layer in layers:
        heads = layer.heads if "head" in keep else 1
        kept = steps if "step" in keep else 1
        shape = (kept, len(prompt_of), heads, len(positions), *layer.grid)
        tensors.append((torch.rand(shape, generator=g) ** 3 / 10).to(dtype))
    return Run(
        prompts=prompts,
        prompt_of=prompt_of,
        positions=positions,
        layers=tuple(layers),
        timesteps=tuple(float(1000 - 10 * s) for s in range(steps)),
        latent=latent,
        keep=frozenset(keep),
        store=MemoryStore(tuple(tensors)),
        info={"model": "made up", "scheduler": "DDIMScheduler", "guidance_scale": 7.5},
        done=done,
        **other,
    )


def tensors_of(run: Run) -> tuple[torch.Tensor, ...]:
    """The maps of a run that is kept in memory, a tensor for each layer."""
    assert isinstance(run.store, MemoryStore)
    return tuple(run.store.tensors)
