"""Measurement of steering: are hard captions drawn right more often, and what does it cost?

`python -m benchmarks.steering --count N --model unet|contextual|mmdit` draws N hard captions plain
and steered by `Present` and `Bind`, from the same seeds, and lets the judge of `benchmarks.judge`
say what is there. `--tune M` compares settings on other captions than those that are reported;
`--noise` draws plainly from the best of several noises, by the same goals; `--place` measures
`Place` on captions of one object in place; `--beside` draws with diffusers' deprecated
Attend-and-Excite pipeline from the same seeds. It writes `steering-MODEL.json`, in which each part
stands for itself, and `steering.md` with the figures of all models.

Captions are drawn in batches, each steered for itself. Intervals are 95 % bootstrap intervals
over captions. Cost is counted in passes of one row through the denoiser, a backward pass as two;
and, of the first captions drawn again one by one, in this process's CPU seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift import Array, Features
from benchmarks.judge import Judge, train_judge, verdicts
from benchmarks.steering_goals import DEFAULT, SETTINGS, Setting, goals_of, positions
from benchmarks.steering_page import SUCCESS, markdown
from benchmarks.steering_ways import Way, chosen, exciting, way
from benchmarks.tally import RESULTS, Tally, interval
from benchmarks.toyland_pictures import (
    DRAW_SEED,
    HARD_SEED,
    decode,
    rebuild,
    score_hard,
    score_picture,
)
from xattn import toyland
from xattn.guidance.goal import Goal
from xattn.guidance.place import Place
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import Scene, compose, scene

TUNE_SEED = 15_000_000
BATCH, TIMED = 10, 3


class Series:
    """Captions drawn in one way: scores, costs and features of each."""

    def __init__(self, draw: Way, batch: int = BATCH) -> None:
        self.way, self.batch = draw, batch
        self.tally = Tally()
        self.right: dict[int, float] = {}
        self.passes: list[int] = []
        self.seconds = 0.0
        self.features: list[Array] = []

    def draw(self, pipe: Any, judge: Judge, scenes: Sequence[Scene]) -> Series:
        """Draw captions, and judge them."""
        for start in range(0, len(scenes), self.batch):
            part = scenes[start : start + self.batch]
            drawn = self.way(part)
            self.passes += drawn.passes
            self.seconds += drawn.seconds
            images = decode(pipe, drawn.latents)
            self.features.append(Features(judge).of(images))
            for wanted, found in zip(part, verdicts(judge, images), strict=True):
                one = Tally()
                for tally in (one, self.tally):
                    score_hard(wanted, found, tally)
                self.right[wanted.seed] = one.scores[SUCCESS][0][0]
            print(f"{len(self.right)}: {np.mean(list(self.right.values())):.2f}", flush=True)
        return self


def possible(pipe: Any, judge: Judge, scenes: Sequence[Scene]) -> Tally:
    """Score the drawn scenes themselves, passed through the autoencoder: the ceiling."""
    tally = Tally()
    pictures = rebuild(pipe, [one.image for one in scenes])
    for one, found in zip(scenes, verdicts(judge, pictures), strict=True):
        score_hard(one, found, tally)
    return tally


def compared(
    judge: Judge, plain: Series, steered: Series, scenes: Sequence[Scene], ceiling: Tally
) -> Any:
    """Return what steering mended, kept, cost, and how far its pictures drifted."""
    tally = Tally()
    values, seeds = ceiling.scores[SUCCESS]
    can = {seed: bool(value) for value, seed in zip(values, seeds, strict=True)}
    costs = np.divide(steered.passes, plain.passes)
    for (seed, before), cost in zip(plain.right.items(), costs, strict=True):
        after = steered.right[seed]
        tally.add("difference", after - before, seed)
        tally.add("kept" if before else "mended", after, seed)
        if not before and can[seed]:
            tally.add("mended, where the autoencoder can show it", after, seed)
        tally.add("cost in passes", float(cost), seed)
    features = Features(judge)
    drawn = features.of([one.image for one in scenes])
    others = features.of([scene(TUNE_SEED - 1 - n, hard=True).image for n in range(len(scenes))])
    unsteered, moved = np.concatenate(plain.features), np.concatenate(steered.features)
    return {
        **tally.summary(),
        "drift": {
            "plain from drawn scenes": features.distance(unsteered, drawn),
            "steered from drawn scenes": features.distance(moved, drawn),
            "steered from plain": features.distance(moved, unsteered),
            "drawn scenes from others (floor)": features.distance(drawn, others),
        },
    }


def timed(ways: Sequence[Way], scenes: Sequence[Scene]) -> list[list[float]]:
    """Return the CPU seconds of captions drawn one by one, in each way by turns."""
    return [[draw([one]).seconds for one in scenes[:TIMED]] for draw in ways]


def measure(
    pipe: Any,
    judge: Judge,
    scenes: Sequence[Scene],
    setting: Setting,
    plain: Series | None = None,
) -> dict[str, Any]:
    """Draw scenes plain, unless they are known, and steered; compare what the judge sees."""
    steering = way(pipe, lambda one: goals_of(one, setting), **setting.options)
    before = plain or Series(way(pipe, lambda one: [])).draw(pipe, judge, scenes)
    steered = Series(steering).draw(pipe, judge, scenes)
    ceiling = possible(pipe, judge, scenes)
    result = {
        "setting": setting.name,
        "plain": before.tally.summary(),
        "steered": steered.tally.summary(),
        "ceiling": ceiling.summary(),
        "compared": compared(judge, before, steered, scenes, ceiling),
    }
    if plain is None:
        was, now = timed([before.way, steering], scenes)
        shares, seeds = np.divide(now, np.mean(was)), [one.seed for one in scenes[: len(now)]]
        result["compared"]["cost in time"] = interval([float(each) for each in shares], seeds)
    return result


def measure_noise(pipe: Any, judge: Judge, count: int, tries: int) -> dict[str, Any]:
    """Draw hard captions plainly, and from the best of several noises by the same goals."""
    scenes = [scene(HARD_SEED + n, hard=True) for n in range(count)]
    ways = [way(pipe, lambda one: []), chosen(pipe, lambda one: goals_of(one, DEFAULT), tries)]
    plain, better = (Series(each).draw(pipe, judge, scenes) for each in ways)
    ceiling = possible(pipe, judge, scenes)
    result = {
        "tries": tries,
        "plain": plain.tally.summary(),
        "steered": better.tally.summary(),
        "ceiling": ceiling.summary(),
        "compared": compared(judge, plain, better, scenes, ceiling),
    }
    was, now = timed(ways, scenes)
    seeds = [one.seed for one in scenes[: len(now)]]
    shares = [float(each) for each in np.divide(now, np.mean(was))]
    result["compared"]["cost in time"] = interval(shares, seeds)
    return result


def tuned(pipe: Any, judge: Judge, count: int) -> tuple[Setting, list[dict[str, Any]]]:
    """Return the setting that gains the most on captions that are not reported, and all figures.

    It goes by objects in their colours: everything asked at once is too rare on few captions.
    """
    scenes = [scene(TUNE_SEED + n, hard=True) for n in range(count)]
    plain = Series(way(pipe, lambda one: [])).draw(pipe, judge, scenes)
    found = [measure(pipe, judge, scenes, setting, plain) for setting in SETTINGS]
    gains = [each["steered"]["object in its colour"]["mean"] for each in found]
    return SETTINGS[int(np.argmax(gains))], found


def measure_places(pipe: Any, judge: Judge, count: int) -> dict[str, Any]:
    """Draw captions of one object on a side, plain and with `Place`: is it there?"""

    def goals_for(wanted: Scene) -> list[Goal]:
        noun = positions(wanted)[0][1]
        return [Place(noun, wanted.things[0].place_word, prompt=wanted.caption)]

    ways = {"plain": way(pipe, lambda one: []), "steered": way(pipe, goals_for)}
    tallies = {name: Tally() for name in ways}
    scenes = placed(count)
    for name, draw in ways.items():
        for start in range(0, count, BATCH):
            part = scenes[start : start + BATCH]
            images = decode(pipe, draw(part).latents)
            for wanted, found in zip(part, verdicts(judge, images), strict=True):
                score_picture(wanted, found, tallies[name])
    seconds = timed(list(ways.values()), scenes)
    names = ("place word", "object", "object colour")
    return {
        **{name: {key: tallies[name].summary()[key] for key in names} for name in ways},
        "cost in time": float(np.mean(seconds[1]) / np.mean(seconds[0])),
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
    scenes = [scene(HARD_SEED + n, hard=True) for n in range(count)]
    steering = way(pipe, lambda one: goals_of(one, setting), **setting.options)
    ways = {"plain": way(pipe, lambda one: []), "steered": steering, "diffusers": exciting(pipe)}
    drawn = {name: Series(each, 1).draw(pipe, judge, scenes) for name, each in ways.items()}
    plain = drawn["plain"].seconds
    return {
        name: {**series.tally.summary(), "cost in time": series.seconds / plain}
        for name, series in drawn.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering", description=__doc__)
    parser.add_argument("--count", type=int, default=0, help="hard captions")
    parser.add_argument("--tune", type=int, default=0, help="other captions to compare settings on")
    parser.add_argument("--place", type=int, default=0, help="captions with place words")
    parser.add_argument("--beside", type=int, default=0, help="hard captions for both pipelines")
    parser.add_argument("--noise", type=int, default=0, help="hard captions from chosen noise")
    parser.add_argument("--tries", type=int, default=16, help="noises to choose from")
    parser.add_argument("--setting", choices=[each.name for each in SETTINGS], default="default")
    parser.add_argument("--model", choices=MODELS, default="contextual")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"steering-{options.model}.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    pipe = toyland.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge = train_judge(options.judge)

    def save() -> None:
        path.write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "steering.md").write_text(markdown(options.out))

    setting = next(each for each in SETTINGS if each.name == options.setting)
    if options.tune:
        setting, result["choices"] = tuned(pipe, judge, options.tune)
    if options.count:
        scenes = [scene(HARD_SEED + n, hard=True) for n in range(options.count)]
        result["hard"] = measure(pipe, judge, scenes, setting)
        save()
    if options.noise:
        result["noise"] = measure_noise(pipe, judge, options.noise, options.tries)
        save()
    if options.place:
        result["place"] = measure_places(pipe, judge, options.place)
        save()
    if options.beside:
        result["beside"] = measure_beside(pipe, judge, options.beside, setting)
    save()


if __name__ == "__main__":
    main()
