"""What tests of whole pipelines share: drawing, recording and editing tiny images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import xattn
from tests import dense, tiny
from tests.tiny import LATENT, SIDE
from xattn.edits.kinds import LocalBlend, Refine, Replace
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize

CAR = "a red car on a green lawn"
BLUE = "a blue car on a green lawn"
NIGHT = "a red car on a green lawn at night"
OTHER = "two cats"
TOKENIZER = tiny.tokenizer()

Generator = Callable[..., torch.Generator]


def read(text: str) -> Prompt:
    return tokenize(TOKENIZER, text)


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def sized(pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options without a size where a pipeline takes it from its image."""
    known = inspect.signature(pipe.__call__).parameters
    return {k: v for k, v in options.items() if k not in ("height", "width") or k in known}


def never(*_: Any, **__: Any) -> Any:
    """Stand in for a denoiser that must not be called."""
    raise AssertionError("sampling has begun")


# -- recording -----------------------------------------------------------------------------------


def draw(pipe: Any, prompt: Any = CAR, seed: int = 0, steps: int = 3, **kwargs: Any) -> Any:
    """Draw images as an array: exact differences show, and no rounding hides them."""
    kwargs = {"num_inference_steps": steps, "height": SIDE, "width": SIDE, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, output_type="np", **sized(pipe, kwargs)).images


def assert_unchanged(pipe: Any, **kwargs: Any) -> xattn.Trace:
    """Draw plainly, recording, and plainly again: three equal images, the same processors."""
    before = dict(pipe.unet.attn_processors)
    plain = draw(pipe, **kwargs)
    with xattn.record(pipe) as trace:
        recorded = draw(pipe, **kwargs)
    np.testing.assert_array_equal(plain, recorded)
    assert_restored(pipe, before)
    np.testing.assert_array_equal(plain, draw(pipe, **kwargs))
    return trace


def assert_restored(pipe: Any, before: dict[str, Any]) -> None:
    after = pipe.unet.attn_processors
    assert list(before) == list(after)
    assert all(type(after[name]) is type(before[name]) for name in before)
    assert all(after[name] is before[name] for name in before)
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._forward_hooks
    assert "encode_prompt" not in pipe.__dict__
    assert "postprocess" not in pipe.image_processor.__dict__


@contextmanager
def while_recording(pipe: Any, **options: Any) -> Iterator[tuple[Callable[[], Any], xattn.Trace]]:
    """Yield a function that draws a prompt, and its trace."""
    with xattn.record(pipe) as trace:
        yield lambda: draw(pipe, **options), trace


@contextmanager
def while_editing(pipe: Any, **options: Any) -> Iterator[tuple[Callable[[], Any], xattn.Trace]]:
    """Yield a function that draws a prompt and an edited sibling, and their trace."""
    edits: list[Any] = [xattn.Replace("red", "blue"), xattn.LocalBlend("car")]
    with xattn.editing(pipe, CAR, edits) as session:
        assert session.trace is not None
        yield (
            lambda: draw(pipe, session.prompts, callback_on_step_end=session.callback, **options),
            session.trace,
        )


def dense_probs(pipe: Any, **kwargs: Any) -> dict[str, list[Tensor]]:
    """Compute every cross-attention's probabilities densely, by an independent processor."""
    seen: dict[str, list[Tensor]] = {}

    class Dense:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Any = None,
            attention_mask: Any = None,
            temb: Any = None,
        ) -> Any:
            if encoder_hidden_states is not None:
                batch = len(hidden_states)
                q = attn.to_q(hidden_states).reshape(
                    batch, -1, attn.heads, attn.inner_dim // attn.heads
                )
                k = attn.to_k(encoder_hidden_states).reshape(batch, 77, attn.heads, -1)
                logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
                weights = (logits - logits.amax(-1, True)).exp()
                seen.setdefault(self.name, []).append(weights / weights.sum(-1, True))
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)

    names = list(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({n: Dense(n.removesuffix(".processor")) for n in names})
    draw(pipe, **kwargs)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    return seen


class FaultError(Exception):
    pass


# -- editing -------------------------------------------------------------------------------------

STEPS = 5
SMALL: dict[str, Any] = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE}
QUIET: dict[str, Any] = SMALL | {"output_type": "latent"}

CASES: dict[str, tuple[Any, str, Callable[[], dense.Sibling]]] = {
    "refine": (
        Refine(NIGHT, cross_steps=0.6),
        NIGHT,
        lambda: dense.Sibling(dense.by_insertion(read(CAR), read(NIGHT)), cross=(0.0, 0.6)),
    ),
    "local blend": (
        [Replace("car", "boat"), LocalBlend("car", subtract="red", threshold=0.85, start=0.4)],
        "a red boat on a green lawn",
        lambda: dense.Sibling(
            dense.identity(),
            blend=dense.Blend([3], [3], [2], [2], threshold=0.85, start=0.4),
        ),
    ),
}
"""Edits, the prompt that each makes, and how the dense reference has it."""


def run(pipe: Any, *edits: Any, seed: int = 0, **options: Any) -> xattn.EditResult:
    """Edit CAR in a few steps, from the noise of a seed."""
    generator = torch.Generator().manual_seed(seed)
    asked = {"generator": generator} | sized(pipe, QUIET) | options
    return xattn.edit(pipe, CAR, *edits, **asked)


def plain(pipe: Any, prompt: str | list[str] = CAR, seed: int = 0, **options: Any) -> Tensor:
    """Draw prompts without an edit, each from the noise of a seed."""
    seeds = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(seed) for _ in range(seeds)]
    images = pipe(prompt, **({"generator": generators} | sized(pipe, QUIET) | options)).images
    assert isinstance(images, Tensor)
    return images


def close(one: Tensor, two: Tensor) -> bool:
    """The same to the rounding of a guided run: 1e-5 of its size, some times over."""
    return bool((one - two).abs().max() <= 1e-4 * two.abs().max())


class LargestShapes(TorchDispatchMode):
    """Collects the shapes of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.shapes.add(tuple(one.shape))
        return result


# -- loops of one's own --------------------------------------------------------------------------


def encoded(pipe: Any, texts: list[str], each: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings of prompts, each several times over, and of empty ones."""
    states, negative = pipe.encode_prompt(texts, "cpu", each, True)
    return states, negative


def own(pipe: Any, *edits: Any, **options: Any) -> Any:
    """Open an editing block around a loop of one's own."""
    pipe.scheduler.set_timesteps(STEPS)
    said = {name: options.pop(name) for name in ("rows", "embeds", "images") if name in options}
    own_loop = xattn.Loop(pipe.unet, tokenizer=pipe.tokenizer, scheduler=pipe.scheduler, **said)
    return xattn.editing(own_loop, CAR, *edits, **options)


def loop(
    pipe: Any,
    blend: Callable[[Tensor], Tensor],
    states: Tensor,
    negative: Tensor | None = None,
    noise: Tensor | None = None,
    passes: int = 1,
) -> Tensor:
    """Samples the rows of some embeddings, guided where there are negative ones."""
    scheduler, each = pipe.scheduler, 1 if noise is None else len(noise)
    if noise is None:
        noise = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(STEPS)
    latents = noise.repeat(len(states) // each, 1, 1, 1) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            if negative is None:
                predicted = pipe.unet(latents, t, states).sample
            else:
                if passes == 1:
                    both = pipe.unet(torch.cat([latents] * 2), t, torch.cat([negative, states]))
                    low, high = both.sample.chunk(2)
                else:
                    high = pipe.unet(latents, t, states).sample
                    low = pipe.unet(latents, t, negative).sample
                predicted = low + 7.5 * (high - low)
            latents = blend(scheduler.step(predicted, t, latents).prev_sample)
    return latents


def unchanged(latents: Tensor) -> Tensor:
    return latents
