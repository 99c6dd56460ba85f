"""Measurement of diagnosis: do findings from maps alone agree with what the judge sees?

`python -m benchmarks.diagnosis --count N --model unet|contextual` draws N hard captions of
training seeds, on which a threshold for each kind of finding is chosen, and N others, on which
figures are stated: the area under the ROC curve, with its 95 % bootstrap interval over scenes, and
precision and recall at the threshold. It writes `diagnosis.json` or `diagnosis-contextual.json` to
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
import torch

from benchmarks.judge import Judge, Verdict, train_judge, verdicts
from benchmarks.toyland import GUIDANCE, HARD_SEED, RESULTS, STEPS, decode
from xattn import record, toyland
from xattn.results.diagnosis import Displaced, Finding, Leaked, Merged, Neglected, scores
from xattn.text.pairs import phrases
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import NOUNS, SIDE

FIT_SEED = 16_000_000
KINDS: tuple[type[Finding], ...] = (Neglected, Leaked, Merged, Displaced)


@dataclass(frozen=True)
class Case:
    """A possible finding: the scene, its score, and whether the judge agrees."""

    seed: int
    score: float
    true: bool


def truth(finding: Finding, wanted: Scene, found: Verdict) -> bool | None:
    """Return whether the judge agrees with a finding; None where it can't say.

    Only nouns that the caption names once are judged: which of two is meant, a picture can't say.
    """
    asked = [thing.noun for thing in wanted.things]
    named = [noun for noun in (finding.word, getattr(finding, "noun", None)) if noun in NOUNS]
    if isinstance(finding, Merged):
        named.append(finding.other)
    if isinstance(finding, Leaked):
        named.append(finding.onto)
    if any(asked.count(noun) != 1 for noun in named):
        return None
    seen = {noun: [s for s in found.things if s.noun == noun] for noun in NOUNS}
    match finding:
        case Neglected(word=word):
            return not seen[word]
        case Leaked(word=colour, onto=onto):
            return any(thing.colour == colour for thing in seen[onto]) if seen[onto] else None
        case Merged(word=one, other=two):
            return not (seen[one] and seen[two])
        case Displaced(word=word, side=side):
            if not seen[word]:
                return None
            return (seen[word][0].x < SIDE / 2) != (side == "left")
    return None


def collected(pipe: Any, judge: Judge, scenes: Sequence[Scene]) -> dict[str, list[Case]]:
    """Draw scenes, score every possible finding, and ask the judge."""
    cases: dict[str, list[Case]] = {kind.__name__: [] for kind in KINDS}
    for wanted in scenes:
        with record(pipe) as trace:
            latents = pipe(
                wanted.caption,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(wanted.seed),
                output_type="latent",
            ).images
        (found,) = verdicts(judge, decode(pipe, latents))
        prompt = trace.run.prompt(0)
        maps = {word: trace.heatmap(word.positions) for word in prompt.words}
        told = [each for each in phrases(prompt) if each.noun.text in NOUNS]
        for finding in scores(prompt, maps, told):
            agrees = truth(finding, wanted, found)
            if agrees is not None:
                name = type(finding).__name__
                cases[name].append(Case(wanted.seed, finding.score, agrees))
    return cases


def auroc(cases: Sequence[Case]) -> float:
    """Return the chance that a true finding scores above a false one; ties count half."""
    true = np.array([case.score for case in cases if case.true])
    false = np.array([case.score for case in cases if not case.true])
    if not len(true) or not len(false):
        return float("nan")
    above = (true[:, None] > false).mean() + 0.5 * (true[:, None] == false).mean()
    return float(above)


def interval(cases: Sequence[Case], draws: int = 300) -> dict[str, float]:
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
        "mean": auroc(cases), "low": float(low), "high": float(high), "count": len(cases),
        "true": true,
    }  # fmt: skip


def fitted(cases: Sequence[Case]) -> float:
    """Return the threshold with the largest sum of true positive and true negative rates."""
    limits = sorted({case.score for case in cases})
    return max(limits, key=lambda limit: sum(rates(cases, limit)), default=1.0)


def rates(cases: Sequence[Case], limit: float) -> tuple[float, float]:
    """Return the share of true cases at or above a threshold, and of false ones below it."""
    true = [case.score >= limit for case in cases if case.true]
    false = [case.score < limit for case in cases if not case.true]
    return sum(true) / max(1, len(true)), sum(false) / max(1, len(false))


def measure(pipe: Any, judge: Judge, count: int) -> dict[str, Any]:
    """Fit thresholds on some captions, and state figures on others."""
    training = collected(pipe, judge, [scene(FIT_SEED + n, hard=True) for n in range(count)])
    others = collected(pipe, judge, [scene(HARD_SEED + n, hard=True) for n in range(count)])
    found = {}
    for name, cases in others.items():
        limit = fitted(training[name])
        recall, rejected = rates(cases, limit)
        raised = [case.true for case in cases if case.score >= limit]
        found[name] = {
            "area": interval(cases), "threshold": limit, "recall": recall, "rejected": rejected,
            "precision": sum(raised) / len(raised) if raised else float("nan"),
        }  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="captions to fit on, and others")
    parser.add_argument("--model", choices=["unet", "contextual"], default="unet")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = toyland.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    result = {"model": options.model, **measure(pipe, train_judge(options.judge), options.count)}
    ending = "" if options.model == "unet" else f"-{options.model}"
    (options.out / f"diagnosis{ending}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
