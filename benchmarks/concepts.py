"""Words that nobody prompted, against exact masks: ``python -m benchmarks.concepts``.

Scenes never seen in training are probed with the empty prompt; their words are asked as concepts.
Each form of ``trace.concepts`` is compared with the words' heat maps when the scene's own caption
is the prompt (DAAM; at each level alone, too), and with chance. "attention" is OVAM's naive form.
Pointing is the share of maps whose peak lies in the mask, IoU that
of the map above 0.4 of its maximum; mIoU is the segmentation's over objects and ground. Intervals
are 95 % bootstrap intervals over scenes. Results go to ``benchmarks/results/concepts.*``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import xattn
from benchmarks.presence import shuffled
from benchmarks.tally import RESULTS, Tally
from benchmarks.toyland_maps import kind_of
from xattn.api.probe import LEVELS
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import Scene, scene

CONCEPT_SEED = 15_000_000
KINDS = ("noun", "ground", "colour")
PLACES = 5


def words_of(one: Scene) -> list[str]:
    """Return the words of a scene with a mask: objects, grounds, colours."""
    found = [word.text for word in one.words if word.text in one.masks]
    return [word for word in dict.fromkeys(found) if kind_of(word) in KINDS]


def measure(pipe: Any, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return each form's pointing, IoU and mIoU, with intervals."""
    tally = Tally()
    for one in scenes:
        words = words_of(one)
        if not words:
            continue
        asked = xattn.probe(
            pipe, one.image, "", levels=LEVELS, seed=one.seed, also=words, affinity=True,
            presence=True,
        )  # fmt: skip
        told = xattn.probe(pipe, one.image, one.caption, levels=LEVELS, seed=one.seed)
        for name, maps in _maps(asked, told, words):
            for word, heat in maps.items():
                mask = one.masks[word]
                for kind in ("all", kind_of(word)):
                    tally.add(f"{name} | {kind} | pointing", heat.points_at(mask), one.seed)
                    tally.add(f"{name} | {kind} | iou", heat.iou(mask, 0.4), one.seed)
            if isinstance(maps, xattn.ConceptMaps):
                tally.add(f"{name} | segmentation | miou", _miou(maps, one), one.seed)
        for word in words:
            tally.add("chance | all | pointing", float(one.masks[word].mean()), one.seed)
    return {"scenes": len(scenes), "levels": list(LEVELS), "scores": tally.summary()}


def measure_prompted(pipe: Any, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return how true a caption's maps are at places, and at each level alone."""
    tally = Tally()
    for one in scenes:
        words = words_of(one)
        if words:
            told = xattn.probe(pipe, one.image, one.caption, levels=LEVELS, seed=one.seed)
            places(told, one, tally)
            levels(told, one, words, tally)
    return {"scenes": len(scenes), "scores": tally.summary()}


def places(told: xattn.Trace, one: Scene, tally: Tally) -> None:
    """Add whether the first word with a mask at a place is one whose mask holds the place.

    Places are drawn from each object's mask and the ground's, ``PLACES`` of each.
    """
    draw = np.random.default_rng(one.seed)
    content = set(words_of(one))
    if not content:
        return
    for kind, mask in [*(("noun", mask) for mask in one.thing_masks), ("ground", one.ground_mask)]:
        rows, columns = np.nonzero(mask)
        covered = any((one.masks[word] & mask).any() for word in content)
        if not len(rows) or not covered:  # a ground that the caption leaves out
            continue
        height, width = mask.shape
        for n in draw.integers(len(rows), size=PLACES):
            x, y = (columns[n] + 0.5) / width, (rows[n] + 0.5) / height
            first = next(word for word, _ in told.at((x, y)) if word in content)
            right = bool(one.masks[first][rows[n], columns[n]])
            tally.add("first word", right, one.seed)
            tally.add(f"first word, {kind}", right, one.seed)


def levels(told: xattn.Trace, one: Scene, words: list[str], tally: Tally) -> None:
    """Add the pointing of the caption's words at each level alone."""
    for step, level in enumerate(sorted(LEVELS, reverse=True)):
        for word in words:
            right = told.heatmap(word, steps=step).points_at(one.masks[word])
            tally.add(f"level {level}", right, one.seed)
    for word in words:
        right = told.heatmap(word).points_at(one.masks[word])
        tally.add("all levels", right, one.seed)


def _maps(asked: Any, told: Any, words: list[str]) -> Iterator[tuple[str, Any]]:
    for form in asked.run.concepts:
        yield form, asked.concepts(words, form=form)
        yield f"{form}, refined", asked.concepts(words, form=form, refined=True)
    yield "prompted", {word: told.heatmap(word) for word in words}


def _miou(maps: Any, one: Scene) -> float:
    """Return the segmentation's mean IoU over the objects and the ground that were asked."""
    things = {name: heat for name, heat in maps.items() if kind_of(name) != "colour"}
    found = xattn.ConceptMaps(things, maps.form, maps.picture).masks()
    scores = [
        (found[name] & one.masks[name]).sum() / max(1, (found[name] | one.masks[name]).sum())
        for name in things
    ]
    return float(np.mean(scores)) if scores else 0.0


def page(results: dict[str, Any]) -> str:
    """Return the results as a page."""
    lines = ["# Words that nobody prompted", "", "By `python -m benchmarks.concepts`.", ""]
    for model, result in results.items():
        lines += [f"## {model}", ""]
        if "scores" in result:
            lines += _table(result)
        lines.append("")
        lines += _prompted(result.get("prompted"))
    return "\n".join(lines)


def _table(result: dict[str, Any]) -> list[str]:
    """Return the table of a model's forms."""
    scores = result["scores"]
    lines = [f"{result['scenes']} scenes.", ""]
    lines += ["| form | pointing | IoU | nouns | grounds | colours | mIoU |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(key.split(" | ")[0] for key in scores):
        cells = [_cell(scores, f"{name} | all | {what}") for what in ("pointing", "iou")]
        cells += [_cell(scores, f"{name} | {kind} | pointing") for kind in KINDS]
        cells += [_cell(scores, f"{name} | segmentation | miou")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _prompted(found: dict[str, Any] | None) -> list[str]:
    """Return the lines on maps of the caption's own words."""
    if found is None:
        return []
    scores = found["scores"]
    kinds = [n for n in ("first word", "first word, noun", "first word, ground") if n in scores]
    firsts = "; ".join(f"{name} {_cell(scores, name)}" for name in kinds)
    each = [name for name in scores if name.startswith("level ")]
    told = "; ".join(f"{name} {_cell(scores, name)}" for name in [*each, "all levels"])
    return [
        f"With the caption as the prompt, {found['scenes']} scenes. The first word of `trace.at` "
        f"that has a mask, at places inside exact masks, is one of that mask: {firsts}.",
        "",
        f"Pointing at single levels and their sum: {told}.",
        "",
    ]


def _cell(scores: dict[str, Any], key: str) -> str:
    found = scores.get(key)
    if found is None:
        return ""
    return f"{found['mean']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def main() -> None:
    """Measure the bundled models, and write the results beside those of other models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="scenes for each model")
    parser.add_argument("--model", action="append", choices=sorted(MODELS), help="all by default")
    parser.add_argument("--prompted", action="store_true", help="the caption's own words alone")
    parser.add_argument("--floor", action="store_true", help="measure with random weights")
    options = parser.parse_args()
    scenes = [scene(CONCEPT_SEED + n) for n in range(options.count)]
    path = RESULTS / "concepts.json"
    for model in options.model or sorted(MODELS):
        pipe: Any = xattn.demo(model)
        name = f"{model}, random weights" if options.floor else model
        pipe = shuffled(pipe) if options.floor else pipe
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if options.prompted:
            results[name] = {**results.get(name, {}), "prompted": measure_prompted(pipe, scenes)}
        else:
            results[name] = {**results.get(name, {}), **measure(pipe, scenes)}
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (RESULTS / "concepts.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
