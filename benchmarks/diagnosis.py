"""Measurement of diagnosis: do findings from maps alone agree with what the judge sees?

`python -m benchmarks.diagnosis --count N --model unet|contextual|mmdit` draws N hard captions of
training seeds, on which a threshold for each kind of finding is chosen, and N others, on which
figures are stated: the area under the ROC curve, with its 95 % bootstrap interval over scenes, and
precision and recall at the threshold. An object whose kind the judge misses may be there all the
same, too soft to be named: where something else in its colour is seen, a second row of `Neglected`
and `Merged` leaves the finding out. It writes `diagnosis-MODEL.json` and `diagnosis.md` to
`benchmarks/results`. `Background` has no truth here: no object of Toyland is a background.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge import Judge, Seen, Verdict, train_judge, verdicts
from benchmarks.steering_ways import usual
from benchmarks.tally import RESULTS
from benchmarks.toyland_pictures import HARD_SEED, decode, take
from xattn import record, toyland
from xattn.results.diagnosis import (
    Displaced,
    Finding,
    Leaked,
    Merged,
    Neglected,
    Thresholds,
    scores,
)
from xattn.results.trace import Trace
from xattn.text.pairs import phrases
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import SIDE

FIT_SEED = 15_000_000
KINDS: tuple[type[Finding], ...] = (Neglected, Leaked, Merged, Displaced)
REJECT = 0.8  # of what is right, at least: four of five raise no finding
NAMED = ", but for what can't be named"


@dataclass(frozen=True)
class Case:
    """A possible finding: the scene, its score, and whether the judge agrees."""

    seed: int
    score: float
    true: bool


def matched(wanted: Scene, found: Verdict) -> list[Seen | None]:
    """Return what the judge saw of each object asked for, first in its colour, then in any."""
    free = list(found.things)
    exact = [take(free, thing.noun, thing.colour) for thing in wanted.things]
    return [
        seen or take(free, thing.noun) for seen, thing in zip(exact, wanted.things, strict=True)
    ]


def truth(finding: Finding, wanted: Scene, found: Verdict) -> bool | None:
    """Return whether the judge agrees with a finding; None where it can't say.

    Words are known by their positions. Of two nouns alike of which one is seen, in neither's
    colour, a picture can't say which it is.
    """
    about = [wanted.words[word.positions[0] - 1].about for word in finding.about]
    things = [index for index in about if isinstance(index, int)]
    if len(things) < len(about):  # the ground, or the sky
        return None
    seen = matched(wanted, found)

    def known(index: int) -> bool:
        thing = wanted.things[index]
        twins = [n for n, t in enumerate(wanted.things) if t.noun == thing.noun and n != index]
        strange = [s for n in twins if (s := seen[n]) and s.colour != wanted.things[n].colour]
        return seen[index] is not None or not strange

    match finding:
        case Neglected():
            return seen[things[0]] is None if known(things[0]) else None
        case Leaked():
            other, colour = seen[things[2]], wanted.things[things[1]].colour
            is_colour = finding.word == colour
            return other.colour == colour if other is not None and is_colour else None
        case Merged():
            if not (known(things[0]) and known(things[1])):
                return None
            return seen[things[0]] is None or seen[things[1]] is None
        case Displaced(side=side):
            place = seen[things[0]]
            return None if place is None else (place.x < SIDE / 2) != (side == "left")
    return None


def nameless(finding: Finding, wanted: Scene, found: Verdict) -> bool:
    """Return whether an object of a finding isn't seen, but something else in its colour is."""
    seen = matched(wanted, found)
    taken = [id(each) for each in seen if each is not None]
    free = {thing.colour for thing in found.things if id(thing) not in taken}
    about = [wanted.words[word.positions[0] - 1].about for word in finding.about]
    missing = [n for n in about if isinstance(n, int) and seen[n] is None]
    return any(wanted.things[n].colour in free for n in missing)


def collected(
    pipe: Any, judge: Judge, scenes: Sequence[Scene], batch: int = 10
) -> dict[str, list[Case]]:
    """Draw scenes, score every possible finding, and ask the judge."""
    names = [kind.__name__ for kind in KINDS]
    cases: dict[str, list[Case]] = {name: [] for name in (*names, *_twice())}
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        with record(pipe, keep=["layer"]) as trace:
            latents = pipe(
                [one.caption for one in part], output_type="latent", **usual(part)
            ).images
        seen = verdicts(judge, decode(pipe, latents))
        for image, (wanted, found) in enumerate(zip(part, seen, strict=True)):
            judged(trace, image, wanted, found, cases)
        print(f"{start + len(part)} captions", flush=True)
    return cases


def judged(
    trace: Trace, image: int, wanted: Scene, found: Verdict, cases: dict[str, list[Case]]
) -> None:
    """Add an image's possible findings to the cases, each with the judge's word on it."""
    prompt = trace.run.prompt(image)
    for finding in scores(prompt, trace.word_maps(image), phrases(prompt)):
        name = type(finding).__name__
        agrees = truth(finding, wanted, found) if name in cases else None
        if agrees is not None:
            case = Case(wanted.seed, finding.score, agrees)
            cases[name].append(case)
            if name + NAMED in cases and not nameless(finding, wanted, found):
                cases[name + NAMED].append(case)


def _twice() -> list[str]:
    return [kind.__name__ + NAMED for kind in (Neglected, Merged)]


def auroc(cases: Sequence[Case]) -> float:
    """Return the chance that a true finding scores above a false one; ties count half."""
    true = np.array([case.score for case in cases if case.true])
    false = np.array([case.score for case in cases if not case.true])
    if not len(true) or not len(false):
        return float("nan")
    above = (true[:, None] > false).mean() + 0.5 * (true[:, None] == false).mean()
    return float(above)


def finite(value: float) -> float | None:
    """Return a figure as JSON has it; None where there was nothing to measure it on."""
    return None if np.isnan(value) else float(value)


def interval(cases: Sequence[Case], draws: int = 300) -> dict[str, Any]:
    """Return the area with its 95 % bootstrap interval; cases of one scene are drawn together."""
    groups: dict[int, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.seed, []).append(case)
    owners = list(groups.values())
    random = np.random.default_rng(0)
    areas = []
    for _ in range(draws if owners else 0):
        picked = random.integers(len(owners), size=len(owners))
        areas.append(auroc([case for pick in picked for case in owners[pick]]))
    known = [area for area in areas if not np.isnan(area)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (float("nan"),) * 2
    true = sum(case.true for case in cases)
    return {
        "mean": finite(auroc(cases)), "low": finite(low), "high": finite(high),
        "count": len(cases), "true": true,
    }  # fmt: skip


def fitted(cases: Sequence[Case], reject: float = 0.0) -> float:
    """Return the threshold with the largest sum of true positive and true negative rates.

    Args:
        cases: the cases to fit on.
        reject: the least true negative rate.
    """
    limits = sorted({case.score for case in cases})
    limits = [limit for limit in limits if rates(cases, limit)[1] >= reject] or limits[-1:]
    return max(limits, key=lambda limit: sum(rates(cases, limit)), default=1.0)


def rates(cases: Sequence[Case], limit: float) -> tuple[float, float]:
    """Return the share of true cases at or above a threshold, and of false ones below it."""
    true = [case.score >= limit for case in cases if case.true]
    false = [case.score < limit for case in cases if not case.true]
    return sum(true) / max(1, len(true)), sum(false) / max(1, len(false))


def measure(pipe: Any, judge: Judge, fit: int, count: int) -> dict[str, Any]:
    """Fit thresholds on some captions, and state figures on others."""
    training = collected(pipe, judge, [scene(FIT_SEED + n, hard=True) for n in range(fit)])
    others = collected(pipe, judge, [scene(HARD_SEED + n, hard=True) for n in range(count)])
    found = {}
    for name, cases in others.items():
        own = getattr(Thresholds(), name.removesuffix(NAMED).lower())
        limit = fitted(training[name.removesuffix(NAMED)], REJECT) if fit else own
        recall, rejected = rates(cases, limit)
        raised = [case.true for case in cases if case.score >= limit]
        found[name] = {
            "area": interval(cases), "area where fitted": interval(training[name]),
            "threshold": limit, "recall": recall, "rejected": rejected,
            "precision": sum(raised) / len(raised) if raised else None,
        }  # fmt: skip
    return found


def rounded(value: float | None) -> str:
    """Return a figure with two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def stated(area: dict[str, Any]) -> str:
    """Return an area with its interval."""
    if area["mean"] is None:
        return "-"
    return f"{area['mean']:.2f} ({rounded(area['low'])} to {rounded(area['high'])})"


def markdown(folder: Path) -> str:
    """Write the figures of all models as a page."""
    lines = [
        "# Diagnosis: figures", "",
        "Made by `python -m benchmarks.diagnosis`: hard captions, thresholds fitted on some and "
        "figures stated on others. Area under the ROC curve against the judge, with its 95 % "
        "bootstrap interval over captions; 0.5 is chance.",
    ]  # fmt: skip
    for path in sorted(folder.glob("diagnosis-*.json")):
        result = json.loads(path.read_text())
        lines += ["", f"## `{result.pop('model')}`", ""]
        lines += ["| finding | area | true, of cases | threshold | recall | precision |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, one in result.items():
            area = one["area"]
            lines.append(
                f"| {name} | {stated(area)} | "
                f"{area['true']} of {area['count']} | {one['threshold']:.2f} | "
                f"{one['recall']:.2f} | {rounded(one['precision'])} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="captions to state figures on")
    parser.add_argument(
        "--fit",
        type=int,
        default=60,
        help="other captions, to fit on; 0 for xattn's own thresholds",
    )
    parser.add_argument("--model", choices=MODELS, default="contextual")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = toyland.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge = train_judge(options.judge)
    result = {"model": options.model, **measure(pipe, judge, options.fit, options.count)}
    path = options.out / f"diagnosis-{options.model}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    page = markdown(options.out)
    (options.out / "diagnosis.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
