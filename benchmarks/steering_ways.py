"""Ways of drawing captions: plainly, steered, from chosen noise, with diffusers' own pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.steering_goals import positions
from benchmarks.toyland_pictures import GUIDANCE, STEPS
from xattn import initial_noise, steer
from xattn.guidance.goal import Goal
from xattn.toyland.scenes import Scene


@dataclass
class Drawing:
    """Drawn captions: their latents, the cost of each in passes, and CPU seconds of them all."""

    latents: torch.Tensor
    passes: list[int]
    seconds: float


Way = Callable[[Sequence[Scene]], Drawing]


def way(pipe: Any, goals_for: Callable[[Scene], Sequence[Goal]], **options: Any) -> Way:
    """Return a way of drawing: each caption steered towards goals of its own, or to none."""

    def draw(wanted: Sequence[Scene]) -> Drawing:
        goals = [goal for one in wanted for goal in goals_for(one)]
        captions = [one.caption for one in wanted]
        start = time.process_time()
        with steer(pipe, *goals, **options) as steering:
            latents = pipe(captions, output_type="latent", **usual(wanted)).images
        seconds = time.process_time() - start
        own = [3 * steps + steering.checks for steps in steering.steps_of or [0] * len(wanted)]
        return Drawing(latents, [2 * STEPS + more for more in own], seconds)

    return draw


def usual(wanted: Sequence[Scene]) -> dict[str, Any]:
    """Return the options of every drawing."""
    return {
        "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
        "generator": [torch.Generator().manual_seed(one.seed) for one in wanted],
    }  # fmt: skip


def chosen(pipe: Any, goals_for: Callable[[Scene], Sequence[Goal]], tries: int) -> Way:
    """Return a way of drawing plainly from the best of several noises, the caption's own first."""

    def draw(wanted: Sequence[Scene]) -> Drawing:
        goals = [goal for one in wanted for goal in goals_for(one)]
        captions = [one.caption for one in wanted]
        start = time.process_time()
        options = usual(wanted)
        noise = initial_noise(
            pipe, captions, *goals, tries=tries, rounds=0, seed=wanted[0].seed, **options
        )
        latents = pipe(captions, output_type="latent", latents=noise, **options).images
        seconds = time.process_time() - start
        return Drawing(latents, [2 * STEPS + tries] * len(wanted), seconds)

    return draw


def exciting(pipe: Any) -> Way:
    """Return the way of diffusers' deprecated Attend-and-Excite pipeline, one caption at a time."""
    from diffusers import StableDiffusionAttendAndExcitePipeline

    other = StableDiffusionAttendAndExcitePipeline(
        **{name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")},
        scheduler=pipe.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    other.set_progress_bar_config(disable=True)

    def excite(scenes: Sequence[Scene]) -> Drawing:
        (wanted,) = scenes
        indices = [noun[0] for _, noun in positions(wanted)]
        own = dict(pipe.unet.attn_processors)
        start = time.process_time()
        try:
            latents = other(
                wanted.caption, token_indices=indices, output_type="latent",
                max_iter_to_alter=STEPS // 2,
                thresholds={0: 0.05, STEPS // 5: 0.5, 2 * STEPS // 5: 0.8},
                **usual(scenes),
            ).images  # fmt: skip
        finally:
            pipe.unet.set_attn_processor(own)
        return Drawing(latents.detach(), [0], time.process_time() - start)

    return excite
