"""Measurement of steering: are hard captions drawn right more often, and what does it cost?

`python -m benchmarks.steering --count N --model unet|contextual` draws N hard captions plain and
steered by `Present` and `Bind`, from the same seeds, and lets the judge of `benchmarks.judge` say
what is there. It writes `steering.json` or `steering-contextual.json` to `benchmarks/results`.
`--tune` compares settings on other captions than those that are reported. Intervals are 95 %
bootstrap intervals over scenes. Cost is counted in passes of one row through the denoiser, a
backward pass as two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.judge import Judge, train_judge, verdicts
from benchmarks.toyland import GUIDANCE, HARD_SEED, RESULTS, STEPS, Tally, decode, score_hard
from xattn import steer, toyland
from xattn.guidance.bind import Bind
from xattn.guidance.goal import Goal
from xattn.guidance.present import Present
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import NOUNS

TUNE_SEED = 15_000_000
SUCCESS = "everything asked"

Setting = Mapping[str, float]
"""step_size and steps of both goals, sharpness and refinements of `Present`."""

DEFAULT: Setting = {"step_size": 20.0, "steps": 0.5, "sharpness": 100.0, "refinements": 0}
SETTINGS: tuple[Setting, ...] = (
    DEFAULT,
    {**DEFAULT, "step_size": 5.0},
    {**DEFAULT, "sharpness": 20.0},
    {**DEFAULT, "steps": 0.25, "refinements": 3},
)


@dataclass
class Passes:
    """Rows that went through a denoiser since the last look."""

    rows: int = 0

    def __call__(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        """Count a forward pass; the hook of the denoiser's first layer."""
        self.rows += len(output)


def positions(wanted: Scene) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the token positions of each object's colour and noun; each word is one token."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for index in range(len(wanted.things)):
        own = [(n, w.text) for n, w in enumerate(wanted.words, start=1) if w.about == index]
        noun = next(n for n, text in own if text in NOUNS)
        colour = next((n for n, text in own if text == wanted.things[index].colour), None)
        found.append((() if colour is None else (colour,), (noun,)))
    return found


def goals_of(wanted: Scene, setting: Setting) -> list[Goal]:
    """Return `Present` of all objects and a `Bind` for each colour."""
    shared = {name: setting[name] for name in ("step_size", "steps")}
    places = positions(wanted)
    present = Present(
        *(noun for _, noun in places),
        sharpness=setting["sharpness"],
        refinements=int(setting["refinements"]),
        **shared,
    )
    return [present, *(Bind(colour, noun, **shared) for colour, noun in places if colour)]


def draw(pipe: Any, wanted: Scene, setting: Setting | None) -> tuple[torch.Tensor, int]:
    """Draw a caption, steered unless the setting is None: its latents, and the cost in passes."""
    passes = Passes()
    hook = pipe.unet.conv_in.register_forward_hook(passes)
    goals = [] if setting is None else goals_of(wanted, setting)
    try:
        with steer(pipe, *goals) as steering:
            latents = pipe(
                wanted.caption,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(wanted.seed),
                output_type="latent",
            ).images
    finally:
        hook.remove()
    return latents, passes.rows + 2 * steering.gradient_steps


def measure(pipe: Any, judge: Judge, scenes: Sequence[Scene], setting: Setting) -> dict[str, Any]:
    """Draw scenes plain and steered, and compare what the judge sees."""
    cost = {"plain": 0, "steered": 0}
    tallies, compared = {name: Tally() for name in cost}, Tally()
    for wanted in scenes:
        right = {}
        for name, how in (("plain", None), ("steered", setting)):
            latents, passes = draw(pipe, wanted, how)
            cost[name] += passes
            one = Tally()
            (found,) = verdicts(judge, decode(pipe, latents))
            for tally in (one, tallies[name]):
                score_hard(wanted, found, tally)
            right[name] = one.scores[SUCCESS][0][0]
        compared.add("difference", right["steered"] - right["plain"], wanted.seed)
        if right["plain"]:
            compared.add("kept", right["steered"], wanted.seed)
        else:
            compared.add("mended", right["steered"], wanted.seed)
    return {
        "setting": dict(setting),
        "plain": tallies["plain"].summary(),
        "steered": tallies["steered"].summary(),
        "compared": compared.summary(),
        "cost": cost["steered"] / cost["plain"],
    }


def tuned(pipe: Any, judge: Judge, count: int) -> tuple[Setting, list[dict[str, Any]]]:
    """Return the setting that mends the most on captions that are not reported, and all figures."""
    scenes = [scene(TUNE_SEED + n, hard=True) for n in range(count)]
    found = [measure(pipe, judge, scenes, setting) for setting in SETTINGS]
    best = max(found, key=lambda each: each["compared"]["difference"]["mean"])
    return best["setting"], found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="captions; 100 by default")
    parser.add_argument("--model", choices=["unet", "contextual"], default="unet")
    parser.add_argument("--tune", type=int, default=0, metavar="N", help="choose on N others first")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = toyland.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge = train_judge(options.judge)
    setting, choices = tuned(pipe, judge, options.tune) if options.tune else (DEFAULT, [])
    scenes = [scene(HARD_SEED + n, hard=True) for n in range(options.count)]
    result = {"model": options.model, "choices": choices, **measure(pipe, judge, scenes, setting)}
    ending = "" if options.model == "unet" else f"-{options.model}"
    (options.out / f"steering{ending}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
