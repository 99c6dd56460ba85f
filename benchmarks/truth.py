"""Truth of heat maps by model: what the page `truth` shows.

`python -m benchmarks --only truth` measures all bundled models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

import xattn
from benchmarks import joint_ways, unet_ways
from benchmarks.grounding import better, ceiling, record_scenes, score, summary
from benchmarks.toyland_maps import CHOICE_SEED, GROUND_SEED, LEVELS
from xattn import toyland
from xattn.records.run import Run
from xattn.toyland.bundle import MODELS, Model
from xattn.toyland.scenes import Scene, scene


def measure(
    count: int, models: Sequence[Model] = MODELS, before: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Measure bundled models on `count` scenes each, and half precision on the UNet.

    Yields:
        What there is so far; what `before` has of other models stays.
    """
    found: dict[str, Any] = {"grounding": {}, **(before or {})}
    for name in models:
        grounding = {**found["grounding"], name: measure_grounding(name, count)}
        found["grounding"] = {each: grounding[each] for each in MODELS if each in grounding}
        if name == "unet":
            found["precision"] = measure_precision(toyland.demo(device="cpu"))
        yield found


def measure_grounding(model: Model, count: int) -> dict[str, Any]:
    """Score every way to make a heat map on `count` scenes, with floor and ceiling."""
    pipe = toyland.demo(model, device="cpu")
    joint = model == "mmdit"
    read, ways_of = (
        (joint_ways.read_joint, joint_ways.joint_ways)
        if joint
        else (unet_ways.read_unet, unet_ways.unet_ways)
    )
    others = record_scenes(pipe, [scene(CHOICE_SEED + n) for n in range(count)], read)
    scenes = [scene(GROUND_SEED + n) for n in range(count)]
    recorded = record_scenes(pipe, scenes, read)
    ways, choices = ways_of(recorded, others)
    cases = recorded.cases
    base = score(ways["default"], cases, others.cases)
    random = record_scenes(untrained(pipe), scenes, read).cases
    scores = {name: score(way, cases, others.cases) for name, way in ways.items()}
    scores["random weights (floor)"] = score(ways["default"], random, random)
    scores["exact mask (ceiling)"] = score(ceiling, cases, others.cases)
    result: dict[str, Any] = {
        "scenes": count,
        "words": len(cases),
        "levels": list(LEVELS),
        **choices,
        "ways": {name: summary(each, base, cases) for name, each in scores.items()},
        "chance": float(np.mean([case.mask.mean() for case in cases])),
    }
    return {**result, "better": better(result)}


def untrained(pipe: Any) -> Any:
    """Return the pipeline with a denoiser of random weights."""
    torch.manual_seed(0)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    old = getattr(pipe, name)
    new = type(old).from_config(old.config).eval()
    checks = {"requires_safety_checker": False} if name == "unet" else {}
    return pipe.__class__(**{**pipe.components, name: new}, **checks)


@torch.no_grad()
def measure_precision(pipe: Any, count: int = 8) -> dict[str, Any]:
    """Compare maps of half-precision models with float32's, layer by layer."""
    scenes = [scene(GROUND_SEED + n) for n in range(count)]
    exact = _half_run(pipe, scenes)
    result: dict[str, Any] = {}
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        try:
            pipe.unet.to(dtype)
            run = _half_run(pipe, scenes)
        except RuntimeError as error:
            result[name] = {"failed": str(error).splitlines()[0]}
            continue
        finally:
            pipe.unet.to(torch.float32)
        figures = {}
        for i, layer in enumerate(exact.layers):
            want, got = exact.maps(i).mean(2), run.maps(i).mean(2)
            peak = want.amax((-2, -1))
            figures[layer.name] = {
                "largest difference": float((got - want).abs().max()),
                "mean difference": float((got - want).abs().mean()),
                "mean": float(want.mean()),
                "of the peak": float(((got - want).abs().amax((-2, -1)) / peak).median()),
            }
        result[name] = figures
    return result


def _half_run(pipe: Any, scenes: Sequence[Scene]) -> Run:
    """Record one call of the UNet at level 500; the UNet alone may be in half precision."""
    captions = [one.caption for one in scenes]
    ids = pipe.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    text = pipe.text_encoder(ids)[0].to(pipe.unet.dtype)
    pixels = torch.cat([pipe.image_processor.preprocess(one.image) for one in scenes])
    clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    seeds = [torch.Generator().manual_seed(one.seed) for one in scenes]
    unet = pipe.unet
    loop = xattn.Loop(unet, tokenizer=pipe.tokenizer, prompt=captions)
    axes = ("step", "layer", "head")
    with xattn.record(loop, keep=axes, dtype=torch.float32) as trace:
        noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in seeds])
        noisy = pipe.scheduler.add_noise(clean, noise, torch.tensor([500]))
        unet(noisy.to(unet.dtype), 500, text)
    return trace.run
