"""Whether a word is in the picture: ``python -m benchmarks.presence``.

Scenes are probed, and every noun, colour and ground of the world is asked: 22 words, each a text
of its own. A word is present where the scene shows it (an object's or the ground's noun or colour),
else absent. ``--calibrate`` fits the logistic model of each bundled denoiser on scenes of its
training (with the same words, and random subsets of them, so that it holds for fewer) and writes
``xattn/toyland/presence.json``; without it the area under the ROC curve is measured on scenes that
neither training nor the fit saw, beside the same denoising error as a single number, and a denoiser
with random weights as the floor. Intervals are 95 % bootstrap intervals over scenes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

import xattn
from benchmarks.tally import RESULTS
from benchmarks.toyland_maps import Array, kind_of
from xattn.api.probe import LEVELS
from xattn.maps import presence
from xattn.toyland.bundle import MODELS
from xattn.toyland.calibration import FILE, calibration_of
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import GROUNDS, NOUNS, PALETTE

FIT_SEED, SEED = 500_000, 16_000_000  # of training's scenes, and unseen ones
WORDS = (*NOUNS, *GROUNDS, *PALETTE)
KINDS = ("noun", "ground", "colour")
_SUBSETS = (2, 4, 8, 16)
_ABOUT = (
    "AUROC, words that a scene shows against those that it does not, on scenes that neither "
    "training nor the fit saw."
)


def shown(one: Scene) -> set[str]:
    """Return the nouns and colours that a scene shows, said in its caption or not."""
    things = {word for thing in one.things for word in (thing.noun, thing.colour)}
    return things | {one.ground.noun, one.ground.colour}


def probed(pipe: Any, one: Scene) -> dict[str, Any]:
    """Return the evidence of a scene's probe."""
    text = " ".join(WORDS)
    trace = xattn.probe(pipe, one.image, text, seed=one.seed, presence=True, batch=len(WORDS) + 1)
    found: dict[str, Any] = trace.run.info["presence"]
    return found


def evidence_of(found: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the products of a scene's evidence."""
    return torch.tensor(found["products"]).double(), torch.tensor(found["along"]).double()


def fit(pipe: Any, count: int) -> dict[str, Any]:
    """Return a denoiser's calibration, fitted on scenes of its training."""
    rows, truths = [], []
    mark: Any = None
    draw = np.random.default_rng(0)
    for number in range(count):
        one = scene(FIT_SEED + number)
        found = probed(pipe, one)
        mark = found["fingerprint"]
        grams, alongs = evidence_of(found)
        there = shown(one)
        for size in (len(WORDS), len(WORDS), *_SUBSETS):
            chosen = sorted(draw.choice(len(WORDS), size, replace=False).tolist())
            rows.append(presence.features(grams, alongs, chosen))
            truths += [WORDS[index] in there for index in chosen]
    weights, bias = logistic(torch.cat(rows), torch.tensor(truths).double())
    return {"fingerprint": mark, "levels": list(LEVELS), "weights": weights, "bias": bias,
            "scenes": count}  # fmt: skip


def logistic(features: torch.Tensor, truth: torch.Tensor) -> tuple[list[float], float]:
    """Return the weights and the bias of a logistic regression, slightly held to zero."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-9)
    scaled = (features - mean) / std
    weights = torch.zeros(scaled.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = scaled @ weights[:-1] + weights[-1]
        found = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        found = found + 1e-3 * weights[:-1].square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)
    own = weights.detach()[:-1] / std
    return own.tolist(), float(weights.detach()[-1] - own @ mean)


def auroc(present: Array, absent: Array) -> float:
    """Return the share of (present, absent) pairs in the right order; ties count half."""
    if not len(present) or not len(absent):
        return float("nan")
    ranks = rankdata(np.concatenate([present, absent]))[: len(present)]
    return float((ranks.mean() - (len(present) + 1) / 2) / len(absent))


def scored(values: Array, truth: Array, words: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the AUROC over all words and over each kind, (scenes, words), with intervals."""
    kinds: dict[str, list[int]] = {"all": list(range(len(words)))}
    for kind in KINDS:
        kinds[kind] = [n for n, word in enumerate(words) if kind_of(word) == kind]
    draws = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))

    def of(rows: Any, columns: list[int]) -> float:
        value, there = values[rows][:, columns], truth[rows][:, columns].astype(bool)
        return auroc(value[there], value[~there])

    found = {}
    for kind, columns in kinds.items():
        low, high = np.nanquantile([of(rows, columns) for rows in draws], [0.025, 0.975])
        mean = of(np.arange(len(values)), columns)
        found[kind] = {"mean": mean, "low": float(low), "high": float(high)}
    return found


def measure(pipe: Any, count: int) -> dict[str, Any]:
    """Return how well presence tells present words from absent ones."""
    rows, truth, calibration = [], [], None
    for number in range(count):
        one = scene(SEED + number)
        found = probed(pipe, one)
        calibration = calibration_of(found["fingerprint"], LEVELS)
        rows.append(presence.features(*evidence_of(found)))
        truth.append([word in shown(one) for word in WORDS])
    stack, there = torch.stack(rows), np.array(truth)
    forms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "denoising error alone": lambda each: each[..., 1],
        "score (any model)": lambda each: each[..., 0],
    }
    if calibration is not None:
        forms["presence"] = calibration.probability
    found = {name: scored(form(stack).numpy(), there, WORDS) for name, form in forms.items()}
    result: dict[str, Any] = {"scenes": count, "auroc": found}
    if calibration is not None:
        values = calibration.probability(stack).numpy()
        result["calibration"] = reliability(values.ravel(), there.ravel())
    return result


def reliability(values: Array, truth: Array) -> list[dict[str, float]]:
    """Return for bins of the probability how often words were there."""
    edges = np.linspace(0, 1, 6)
    rows = []
    for low, high in itertools.pairwise(edges):
        inside = (values >= low) & ((values < high) | (high == 1))
        if inside.any():
            rows.append({"said": float(values[inside].mean()), "there": float(truth[inside].mean()),
                         "words": int(inside.sum())})  # fmt: skip
    return rows


def shuffled(pipe: Any) -> Any:
    """Return a pipeline whose denoiser has random weights: each tensor's own, in another order."""
    generator = torch.Generator().manual_seed(0)
    net = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        for each in net.parameters():
            order = torch.randperm(each.numel(), generator=generator)
            each.copy_(each.flatten()[order].view_as(each))
    return pipe


def page(results: dict[str, Any]) -> str:
    """Return the results as a page."""
    lines = ["# Presence of words", "", f"By `python -m benchmarks.presence`: {_ABOUT}", ""]
    for model, result in results.items():
        lines += [f"## {model}", "", f"{result['scenes']} scenes, {len(WORDS)} words each.", ""]
        lines += ["| | all | nouns | grounds | colours |", "|---|---|---|---|---|"]
        for form, found in result["auroc"].items():
            cells = [f"{f['mean']:.2f} ({f['low']:.2f}-{f['high']:.2f})" for f in found.values()]
            lines.append(f"| {form} | {' | '.join(cells)} |")
        if "calibration" in result:
            lines += ["", "| said, mean of a bin | there | words |", "|---|---|---|"]
            lines += [
                f"| {each['said']:.2f} | {each['there']:.2f} | {each['words']:.0f} |"
                for each in result["calibration"]
            ]
        lines.append("")
    return "\n".join(lines)


def stored(path: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Put a model's result beside the others of a file, and return all of them."""
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = found
    text = json.dumps(known, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    return known


def main() -> None:
    """Fit or measure the bundled models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="scenes for each model")
    parser.add_argument("--model", action="append", choices=sorted(MODELS), help="all by default")
    parser.add_argument("--calibrate", action="store_true", help="fit in place of measuring")
    parser.add_argument("--floor", action="store_true", help="measure with random weights")
    options = parser.parse_args()
    for model in options.model or sorted(MODELS):
        pipe = xattn.demo(model)
        if options.calibrate:
            stored(FILE, model, fit(pipe, options.count))
            continue
        pipe = shuffled(pipe) if options.floor else pipe
        name = f"{model}, random weights" if options.floor else model
        results = stored(RESULTS / "presence.json", name, measure(pipe, options.count))
        (RESULTS / "presence.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
