"""Measurement of steering: are hard captions drawn right more often, and what does it cost?

`python -m benchmarks.steering --count N --model unet|contextual` draws N hard captions plain and
steered by `Present` and `Bind`, from the same seeds, and lets the judge of `benchmarks.judge` say
what is there. `--tune M` compares settings on other captions than those that are reported;
`--place` measures `Place` on captions of one object in place; `--beside` draws with diffusers'
deprecated Attend-and-Excite pipeline from the same seeds. It writes `steering-MODEL.json`, in
which each part stands for itself, and `steering.md` with the figures of all models.

Intervals are 95 % bootstrap intervals over captions. Cost is counted in passes of one row through
the denoiser, a backward pass as two, and in this process's CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.drift import Features
from benchmarks.judge import Judge, train_judge, verdicts
from benchmarks.steering_page import SUCCESS, markdown
from benchmarks.toyland import (
    DRAW_SEED,
    GUIDANCE,
    HARD_SEED,
    RESULTS,
    STEPS,
    Tally,
    decode,
    score_hard,
    score_picture,
)
from xattn import steer, toyland
from xattn.guidance.bind import Bind
from xattn.guidance.goal import Goal
from xattn.guidance.place import Place
from xattn.guidance.present import Present
from xattn.toyland.scenes import Scene, compose, scene
from xattn.toyland.world import NOUNS

TUNE_SEED = 15_000_000


@dataclass(frozen=True)
class Setting:
    """How a caption is steered: what `steer` is given, and the weights of its goals."""

    name: str = "default"
    options: dict[str, Any] = field(default_factory=dict)
    present: float = 1.0
    bind: float = 1.0
    goal: dict[str, Any] = field(default_factory=dict)


DEFAULT = Setting()
SETTINGS = (
    DEFAULT,
    Setting("all layers", {"layers": "*"}),
    Setting("Bind alone", present=0.0),
    Setting("moves of 0.1", {"move": 0.1}),
    Setting("as in the papers", {"move": None, "rounds": 1}, goal={"steps": 0.5}),
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
    places = positions(wanted)
    found: list[Goal] = []
    if setting.present:
        nouns = [noun for _, noun in places]
        found.append(Present(*nouns, weight=setting.present, **setting.goal))
    if setting.bind:
        found += [
            Bind(colour, noun, weight=setting.bind, **setting.goal)
            for colour, noun in places
            if colour
        ]
    return found


@dataclass
class Drawing:
    """A drawn caption: its latents, and what it cost in passes and in CPU seconds."""

    latents: torch.Tensor
    passes: int
    seconds: float


def draw(pipe: Any, wanted: Scene, goals: Sequence[Goal], **options: Any) -> Drawing:
    """Draw a caption, steered where there are goals."""
    passes = Passes()
    hook = pipe.unet.conv_in.register_forward_hook(passes)
    start = time.process_time()
    try:
        with steer(pipe, *goals, **options) as steering:
            latents = pipe(wanted.caption, output_type="latent", **_usual(wanted)).images
    finally:
        hook.remove()
    seconds = time.process_time() - start
    return Drawing(latents, passes.rows + 2 * steering.gradient_steps, seconds)


def _usual(wanted: Scene) -> dict[str, Any]:
    return {
        "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
        "generator": torch.Generator().manual_seed(wanted.seed),
    }  # fmt: skip


Way = Callable[[Scene], Drawing]


class Series:
    """One way of drawing captions: scores, costs and pictures of each."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.tally = Tally()
        self.right: dict[int, float] = {}
        self.passes: list[int] = []
        self.seconds: list[float] = []
        self.features: list[np.ndarray[Any, Any]] = []

    def draw(self, pipe: Any, judge: Judge, wanted: Scene) -> None:
        """Draw a caption, and judge it."""
        drawn = self.way(wanted)
        self.passes.append(drawn.passes)
        self.seconds.append(drawn.seconds)
        images, one = decode(pipe, drawn.latents), Tally()
        (found,) = verdicts(judge, images)
        for tally in (one, self.tally):
            score_hard(wanted, found, tally)
        self.right[wanted.seed] = one.scores[SUCCESS][0][0]
        self.features.append(Features(judge).of(images)[0])


def compared(judge: Judge, plain: Series, steered: Series, scenes: Sequence[Scene]) -> Any:
    """Return what steering mended, kept, cost, and how far its pictures drifted."""
    tally = Tally()
    for seed, before in plain.right.items():
        after = steered.right[seed]
        tally.add("difference", after - before, seed)
        tally.add("kept" if before else "mended", after, seed)
    ratios = {
        "passes": np.divide(steered.passes, plain.passes),
        "time": np.divide(steered.seconds, np.mean(plain.seconds)),
    }
    for name, values in ratios.items():
        for seed, value in zip(plain.right, values, strict=True):
            tally.add(f"cost in {name}", float(value), seed)
    features = Features(judge)
    drawn = features.of([one.image for one in scenes])
    others = features.of([scene(TUNE_SEED - 1 - n, hard=True).image for n in range(len(scenes))])
    return {
        **tally.summary(),
        "drift": {
            "plain from drawn scenes": features.distance(np.stack(plain.features), drawn),
            "steered from drawn scenes": features.distance(np.stack(steered.features), drawn),
            "steered from plain": features.distance(
                np.stack(steered.features), np.stack(plain.features)
            ),
            "drawn scenes from others (floor)": features.distance(drawn, others),
        },
    }


def measure(
    pipe: Any,
    judge: Judge,
    scenes: Sequence[Scene],
    setting: Setting,
    plain: Series | None = None,
) -> dict[str, Any]:
    """Draw scenes plain, unless they are known, and steered; compare what the judge sees."""
    known, plain = plain is not None, plain or Series(lambda one: draw(pipe, one, []))
    steered = Series(lambda one: draw(pipe, one, goals_of(one, setting), **setting.options))
    for number, wanted in enumerate(scenes):
        for series in [steered] if known else [plain, steered]:
            series.draw(pipe, judge, wanted)
        if number % 10 == 9:
            mean = [np.mean(list(series.right.values())) for series in (plain, steered)]
            print(f"{number + 1} captions: plain {mean[0]:.2f}, steered {mean[1]:.2f}", flush=True)
    return {
        "setting": setting.name,
        "plain": plain.tally.summary(),
        "steered": steered.tally.summary(),
        "compared": compared(judge, plain, steered, scenes),
    }


def tuned(pipe: Any, judge: Judge, count: int) -> tuple[Setting, list[dict[str, Any]]]:
    """Return the setting that gains the most on captions that are not reported, and all figures.

    It goes by objects in their colours: everything asked at once is too rare on few captions.
    """
    scenes = [scene(TUNE_SEED + n, hard=True) for n in range(count)]
    plain = Series(lambda one: draw(pipe, one, []))
    for wanted in scenes:
        plain.draw(pipe, judge, wanted)
    found = [measure(pipe, judge, scenes, setting, plain) for setting in SETTINGS]
    gains = [each["steered"]["object in its colour"]["mean"] for each in found]
    return SETTINGS[int(np.argmax(gains))], found


def measure_places(pipe: Any, judge: Judge, count: int) -> dict[str, Any]:
    """Draw captions of one object on a side, plain and with `Place`: is it there?"""
    tallies = {"plain": Tally(), "steered": Tally()}
    costs: dict[str, list[float]] = {name: [] for name in tallies}
    for wanted in placed(count):
        (thing,), noun = wanted.things, positions(wanted)[0][1]
        ways: dict[str, list[Goal]] = {"plain": [], "steered": [Place(noun, thing.place_word)]}
        for name, goals in ways.items():
            drawn = draw(pipe, wanted, goals)
            costs[name].append(drawn.seconds)
            (found,) = verdicts(judge, decode(pipe, drawn.latents))
            score_picture(wanted, found, tallies[name])
    names = ("place word", "object", "object colour")
    return {
        **{
            name: {key: tally.summary()[key] for key in names if key in tally.summary()}
            for name, tally in tallies.items()
        },
        "cost in time": float(np.mean(costs["steered"]) / np.mean(costs["plain"])),
    }


def placed(count: int) -> list[Scene]:
    """Return scenes of one object whose caption says on which side it is."""
    found: list[Scene] = []
    seed = DRAW_SEED
    while len(found) < count:
        things = compose(seed).things
        if len(things) == 1 and things[0].place_word:
            found.append(scene(seed))
        seed += 1
    return found


def measure_beside(pipe: Any, judge: Judge, count: int, setting: Setting) -> dict[str, Any]:
    """Draw hard captions with diffusers' deprecated pipeline, beside ours, from the same seeds."""
    from diffusers import StableDiffusionAttendAndExcitePipeline

    other = StableDiffusionAttendAndExcitePipeline(
        **{name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")},
        scheduler=pipe.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    other.set_progress_bar_config(disable=True)

    def excite(wanted: Scene) -> Drawing:
        indices = [noun[0] for _, noun in positions(wanted)]
        own = dict(pipe.unet.attn_processors)
        start = time.process_time()
        try:
            latents = other(
                wanted.caption, token_indices=indices, output_type="latent",
                max_iter_to_alter=STEPS // 2,
                thresholds={0: 0.05, STEPS // 5: 0.5, 2 * STEPS // 5: 0.8},
                **_usual(wanted),
            ).images  # fmt: skip
        finally:
            pipe.unet.set_attn_processor(own)
        return Drawing(latents.detach(), 0, time.process_time() - start)

    scenes = [scene(HARD_SEED + n, hard=True) for n in range(count)]
    ways = {
        "plain": Series(lambda one: draw(pipe, one, [])),
        "steered": Series(lambda one: draw(pipe, one, goals_of(one, setting), **setting.options)),
        "diffusers": Series(excite),
    }
    for wanted in scenes:
        for series in ways.values():
            series.draw(pipe, judge, wanted)
    seconds = float(np.mean(ways["plain"].seconds))
    return {
        name: {
            **series.tally.summary(),
            "cost in time": float(np.mean(series.seconds)) / seconds,
        }
        for name, series in ways.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering", description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="hard captions")
    parser.add_argument("--tune", type=int, default=0, help="other captions to compare settings on")
    parser.add_argument("--place", type=int, default=0, help="captions with place words")
    parser.add_argument("--beside", type=int, default=0, help="hard captions for both pipelines")
    parser.add_argument("--setting", choices=[each.name for each in SETTINGS], default="default")
    parser.add_argument("--model", choices=["unet", "contextual"], default="contextual")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"steering-{options.model}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    pipe = toyland.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge = train_judge(options.judge)
    setting = next(each for each in SETTINGS if each.name == options.setting)
    if options.tune:
        setting, result["choices"] = tuned(pipe, judge, options.tune)
    if options.count:
        scenes = [scene(HARD_SEED + n, hard=True) for n in range(options.count)]
        result["hard"] = measure(pipe, judge, scenes, setting)
    if options.place:
        result["place"] = measure_places(pipe, judge, options.place)
    if options.beside:
        result["beside"] = measure_beside(pipe, judge, options.beside, setting)
    path.write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "steering.md").write_text(markdown(options.out))


if __name__ == "__main__":
    main()
