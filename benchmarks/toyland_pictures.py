"""Do the bundled models draw what they are told? Captions of unseen seeds, and a judge."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.judge import FIRST_SEED, Judge, Seen, Verdict, verdicts
from benchmarks.tally import Tally
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import HELD_OUT, SIDE, SIZES

DRAW_SEED, HELD_OUT_SEED, HARD_SEED = 10_000_000, 11_000_000, 14_000_000
KINDS = ("training", "held out", "hard")
"""Kinds of captions that the models are asked to draw."""
STEPS, GUIDANCE = 20, 5.0


def generate(
    pipe: StableDiffusionPipeline, captions: Sequence[str], seeds: Sequence[int], batch: int = 20
) -> torch.Tensor:
    """Draw captions, each from its own seed, and return their latents `(count, 8, 16, 16)`."""
    latents = []
    for start in range(0, len(captions), batch):
        generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + batch]]
        drawn = pipe(
            list(captions[start : start + batch]),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="latent",
        )
        latents.append(drawn.images)
    return torch.cat(latents)


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> list[Image.Image]:
    """Decode latents into pictures."""
    images: list[Image.Image] = []
    for part in (latents / pipe.vae.config.scaling_factor).split(20):
        images += pipe.image_processor.postprocess(pipe.vae.decode(part).sample)
    return images


@torch.no_grad()
def rebuild(pipe: StableDiffusionPipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pass pictures through the autoencoder."""
    codes = [
        pipe.vae.encode(pipe.image_processor.preprocess(image)).latent_dist.mean for image in images
    ]
    return decode(pipe, torch.cat(codes) * pipe.vae.config.scaling_factor)


def score_picture(wanted: Scene, found: Verdict, tally: Tally) -> None:
    """Compare the caption with what the judge sees; only what the caption names counts."""
    seed = wanted.seed
    largest = found.things[: len(wanted.things)]
    in_order = sorted(largest, key=lambda thing: thing.x)
    for index, thing in enumerate(wanted.things):
        same = [seen for seen in largest if seen.noun == thing.noun]
        match = same[0] if same else (in_order[index] if index < len(in_order) else None)
        right_colour = match is not None and match.colour == thing.colour
        scenes = "one object" if len(wanted.things) == 1 else "two objects"
        tally.add("object", bool(same), seed)
        tally.add(f"object, {scenes}", bool(same), seed)
        tally.add(f"object: {thing.noun}", bool(same), seed)
        if thing.colour_said:
            tally.add("object colour", right_colour, seed)
            tally.add(f"object colour, {scenes}", right_colour, seed)
        if (thing.colour, thing.noun) in HELD_OUT:
            tally.add("held-out pair", bool(same) and right_colour, seed)
            tally.add(
                f"held-out pair: {thing.colour} {thing.noun}", bool(same) and right_colour, seed
            )
        if thing.place_word and match is not None:
            tally.add("place word", (match.x < SIDE / 2) == (thing.place_word == "left"), seed)
        if thing.size_word and match is not None:
            middle = sum(SIZES[""]) / 2
            small = np.sqrt(match.area / _fill(thing.noun)) < middle
            tally.add("size word", bool(small) == (thing.size_word == "small"), seed)
    tally.add("number of objects", len(found.things) == len(wanted.things), seed)
    if wanted.ground.colour_said:
        tally.add("ground colour", found.ground == wanted.ground.colour, seed)
    tally.add("night or day", found.dark == wanted.night, seed)


def score_hard(wanted: Scene, found: Verdict, tally: Tally) -> None:
    """Compare a hard scene with what the judge sees; each seen object answers for one asked.

    "everything asked" asks for every object in its colour, "everything, and nothing else" for the
    ground's colour, night or day, the order from left to right and the number of objects too.
    """
    asked = sorted(wanted.things, key=lambda thing: thing.box[0])  # left to right
    free = list(found.things)
    exact = [take(free, thing.noun, thing.colour) for thing in asked]
    named = [seen or take(free, thing.noun) for seen, thing in zip(exact, asked, strict=True)]
    for seen, either in zip(exact, named, strict=True):
        tally.add("object", either is not None, wanted.seed)
        tally.add("object in its colour", seen is not None, wanted.seed)
    places = [seen.x for seen in exact if seen is not None]
    complete = len(places) == len(asked)
    ground = found.ground == wanted.ground.colour
    counted = len(found.things) == len(asked)
    tally.add("number of objects", counted, wanted.seed)
    tally.add("ground colour", ground, wanted.seed)
    tally.add("night or day", found.dark == wanted.night, wanted.seed)
    tally.add("everything asked", complete, wanted.seed)
    if complete:
        tally.add("order from left to right", places == sorted(places), wanted.seed)
    rest = ground and counted and found.dark == wanted.night and places == sorted(places)
    tally.add("everything, and nothing else", complete and rest, wanted.seed)


def take(free: list[Seen], noun: str, colour: str | None = None) -> Seen | None:
    """Take the largest fitting object off a list."""
    fitting = [seen for seen in free if seen.noun == noun and colour in (None, seen.colour)]
    if fitting:
        free.remove(fitting[0])
    return fitting[0] if fitting else None


_FILL: dict[str, float] = {}


def _fill(noun: str) -> float:
    """Return the share of its box covered by a noun's mask, measured once on a drawn scene."""
    if noun not in _FILL:
        for seed in itertools.count(FIRST_SEED):
            drawn = scene(seed)
            if drawn.things[0].noun == noun:
                left, top, right, bottom = drawn.things[0].box
                area = (right - left) * (bottom - top)
                _FILL[noun] = float(drawn.thing_masks[0].sum() / area)
                break
    return _FILL[noun]


def asked(kind: str, count: int) -> list[Scene]:
    """Draw the scenes whose captions are asked for; half as many with held-out pairs."""
    if kind == "hard":
        return [scene(HARD_SEED + n, hard=True) for n in range(count)]
    if kind == "held out":
        return [scene(HELD_OUT_SEED + n, "held out") for n in range(count // 2)]
    return [scene(DRAW_SEED + n) for n in range(count)]


def measure_drawing(
    pipe: StableDiffusionPipeline,
    judge: Judge,
    count: int,
    keep: Path | None = None,
    kinds: Sequence[str] = KINDS,
) -> tuple[dict[str, Any], list[tuple[Scene, Image.Image, Verdict]]]:
    """Draw captions of unseen seeds and score them; score the judge itself on real scenes.

    `keep` is a folder for the drawn latents, to reuse them after a change of the decoder.
    """
    result: dict[str, Any] = {}
    drawn: list[tuple[Scene, Image.Image, Verdict]] = []
    for kind in kinds:
        wanted = asked(kind, count)
        score = score_hard if kind == "hard" else score_picture
        real, made = Tally(), Tally()
        pictures = [one.image for one in wanted]
        rebuilt = rebuild(pipe, pictures)
        passed = Tally()
        for one, verdict in zip(wanted, verdicts(judge, pictures), strict=True):
            score(one, verdict, real)
        for one, verdict in zip(wanted, verdicts(judge, rebuilt), strict=True):
            score(one, verdict, passed)
        path = None if keep is None else keep / f"latents-{wanted[0].seed}-{len(wanted)}.pt"
        if path is not None and path.exists():
            latents = torch.load(path, weights_only=True)
        else:
            captions = [one.caption for one in wanted]
            latents = generate(pipe, captions, [one.seed for one in wanted])
            if path is not None:
                torch.save(latents, path)
        images = decode(pipe, latents)
        for one, image, verdict in zip(wanted, images, verdicts(judge, images), strict=True):
            score(one, verdict, made)
            drawn.append((one, image, verdict))
        result[kind] = {
            "generated": made.summary(),
            "judge on real scenes": real.summary(),
            "judge on reconstructions": passed.summary(),
        }
    return result, drawn
