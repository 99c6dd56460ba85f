"""What edits of joint attention keep and change, and how long which layers follow the source.

`python -m benchmarks.joint` draws `--prompts` prompts of `benchmarks.edits` with the bundled
joint-attention model, each with its seed, and edits them with the library's defaults; beside them
stands the new prompt without control. `--sweep` takes other prompts, on which the defaults may be
chosen: the text's columns follow the source for one share of the steps, and the image's queries
and keys for another, in all layers and in each half of them. `--night` refines the sweep's prompts
by "at night", which changes the whole picture. Each part is kept in `benchmarks/results/joint.json`
until it is measured again, and all are in `joint.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import xattn
from benchmarks import machine
from benchmarks.edits import FIRST_SEED, STEPS, Case, cases, look, outside, psnr
from benchmarks.judge import Judge, train_judge, verdicts
from benchmarks.page import table
from benchmarks.tally import RESULTS, Tally, percent
from benchmarks.toyland_pictures import GUIDANCE, decode
from xattn.edits.kinds import Edits
from xattn.edits.timing import JOINT
from xattn.models import family_of

SWEEP_SEED = 35_000_000
SHARES, FEW = (0.0, 0.2, 0.4, 0.8), (0.2, 0.4)  # of all layers, and of a half of them
Grid = Sequence[tuple[float, float]]
DEFAULTS: Grid = ((0.0, 0.0), (float(JOINT.cross), float(JOINT.self_)))
NIGHTS: Grid = ((0.0, 0.0), (0.1, 0.1), (0.0, 0.2), (0.2, 0.0), DEFAULTS[-1])
GOALS = {"recolour": "95 %", "recolour, blended": "95 %, 35 dB", "swap": "85 %"}
KINDS = {
    "recolour": "the new colour",
    "recolour, blended": "the new colour",
    "swap": "the new object",
}

Key = tuple[str, str, float, float]  # kind, layers, shares of text's columns and of the image's


@dataclass(frozen=True)
class Reach:
    """Layers to edit, all of them where there are no names, and the shares to try there."""

    name: str
    layers: tuple[str, ...] | None
    grid: Grid


def reaches(pipe: Any) -> list[Reach]:
    """Return what the sweep tries: all layers, the first half of them, the second."""
    names = [layer.name for layer in family_of(pipe.transformer).layers(pipe.transformer)]
    half, few = len(names) // 2, tuple(product(FEW, FEW))
    return [
        Reach("all", None, tuple(product(SHARES, SHARES))),
        Reach("first half", tuple(names[:half]), few),
        Reach("second half", tuple(names[half:]), few),
    ]


def edits_of(case: Case, grid: Grid) -> dict[tuple[str, float, float], Edits]:
    """Return every edit of a prompt, by kind and by shares."""
    found: dict[tuple[str, float, float], Edits] = {}
    for cross, self_ in grid:
        timing = {"cross_steps": cross, "self_steps": self_}
        recolour = xattn.Replace(case.colour, case.new_colour, **timing)
        found["recolour", cross, self_] = recolour
        found["recolour, blended", cross, self_] = [recolour, xattn.LocalBlend(case.noun)]
        found["swap", cross, self_] = xattn.Replace(case.noun, case.new_noun, **timing)
    return found


def edited(pipe: Any, case: Case, asked: Iterable[Edits], steps: int, **options: Any) -> Any:
    """Return the source of a case and its edits, drawn together."""
    return xattn.edit(
        pipe,
        case.prompt,
        *asked,
        generator=torch.Generator().manual_seed(case.seed),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        trace=False,
        **options,
    )


@torch.no_grad()
def draw(
    pipe: Any, case: Case, steps: int, tried: Sequence[Reach]
) -> tuple[Image.Image, dict[Key, Image.Image]]:
    """Return the source of a case, and its edits."""
    latents: list[Any] = []
    keys: list[Key] = []
    for reach in tried:
        asked = edits_of(case, reach.grid)
        result = edited(
            pipe, case, asked.values(), steps, layers=reach.layers, output_type="latent"
        )
        if not latents:
            latents.append(result.source)
        latents += result.images
        keys += [(kind, reach.name, cross, self_) for kind, cross, self_ in asked]
    images = decode(pipe, torch.stack(latents))
    return images[0], dict(zip(keys, images[1:], strict=True))


def shows(pipe: Any, case: Case, steps: int, judge: Judge) -> bool:
    """Whether the plain picture of a prompt shows its object: others' edits needn't be drawn."""
    (image,) = pipe(
        case.prompt,
        generator=torch.Generator().manual_seed(case.seed),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
    ).images
    (found,) = look(judge, [image])
    return found is not None and (found.noun, found.colour) == (case.noun, case.colour)


def score(
    case: Case, source: Image.Image, edits: dict[Key, Image.Image], judge: Judge, tally: Tally
) -> bool:
    """Score the edits of a case; return False if the source does not show its object."""
    original, *found = look(judge, [source, *edits.values()])
    if original is None or (original.noun, original.colour) != (case.noun, case.colour):
        return False
    for (key, image), seen in zip(edits.items(), found, strict=True):
        shape = original.mask if seen is None else seen.mask
        swapped = key[0] == "swap"
        right = seen is not None and (
            seen.noun == case.new_noun if swapped else seen.colour == case.new_colour
        )
        name = "/".join(map(str, key))
        tally.add(f"{name}/done", right, case.seed)
        tally.add(f"{name}/kept", psnr(source, image, outside(original.mask, shape)), case.seed)
    return True


def measure(
    pipe: Any, judge: Judge, chosen: Sequence[Case], steps: int, tried: Sequence[Reach]
) -> dict[str, Any]:
    """Draw and score prompts; return the figures by edit, and of how many prompts they are."""
    tally, scored = Tally(), 0
    for case in chosen:
        if shows(pipe, case, steps, judge):
            scored += score(case, *draw(pipe, case, steps, tried), judge, tally)
            print(f"{case.prompt}: {scored} scored", flush=True)
    figures: dict[str, Any] = {}
    for name, value in tally.summary().items():
        key, _, what = name.rpartition("/")
        figures.setdefault(key, {})[what] = value
    return {"prompts": len(chosen), "scored": scored, "steps": steps, "figures": figures}


def nights(pipe: Any, judge: Judge, chosen: Sequence[Case], steps: int) -> dict[str, Any]:
    """Refine prompts by "at night": is it night then, and is the object there as asked for?"""
    tally, scored = Tally(), 0
    for case in chosen:
        if not shows(pipe, case, steps, judge):
            continue
        scored += 1
        asked = [
            xattn.Refine(f"{case.prompt} at night", cross_steps=cross, self_steps=self_)
            for cross, self_ in NIGHTS
        ]
        images = edited(pipe, case, asked, steps).images
        for shares, found in zip(NIGHTS, verdicts(judge, images), strict=True):
            name = "/".join(map(str, shares))
            there = [(seen.noun, seen.colour) for seen in found.things[:1]]
            tally.add(f"{name}/night", found.dark, case.seed)
            tally.add(f"{name}/object", there == [(case.noun, case.colour)], case.seed)
    return {"prompts": len(chosen), "scored": scored, "steps": steps, "figures": tally.summary()}


HEAD = ("text's columns", "image's queries and keys", "background kept")


def rows_of(part: dict[str, Any], kind: str) -> list[tuple[str, ...]]:
    """Return a kind's rows: layers, both shares, the background kept, and how many are right."""
    rows: list[tuple[str, ...]] = []
    for name, figures in part["figures"].items():
        of, layers, cross, self_ = name.split("/")
        if of == kind:
            kept = figures["kept"]
            shown = f"{kept['mean']:.1f} dB ({kept['low']:.1f} to {kept['high']:.1f})"
            rows.append((layers, cross, self_, shown, percent(figures["done"])))
    return rows


def counts(part: dict[str, Any]) -> str:
    """Say of how many prompts a part is."""
    return (
        f"{part['prompts']} prompts, of which {part['scored']} show the object asked for, "
        f"{part['steps']} steps, guidance {GUIDANCE:g}"
    )


def with_defaults(part: dict[str, Any]) -> list[str]:
    """Format the edits with the library's defaults, beside the new prompt without control."""
    rows = [(kind, *row[1:], GOALS[kind]) for kind in KINDS for row in rows_of(part, kind)]
    return [
        "## The defaults",
        f"{counts(part)}. Shares of 0 and 0 are the new prompt without control.",
        table(("edit", *HEAD, "as asked", "goal"), rows),
    ]


def swept(part: dict[str, Any]) -> list[str]:
    """Format the sweep, kind by kind."""
    parts = ["## Other shares, other layers", f"Other prompts: {counts(part)}."]
    for kind, aim in KINDS.items():
        parts += [f"### {kind.capitalize()}", table(("layers", *HEAD, aim), rows_of(part, kind))]
    return parts


def refined(part: dict[str, Any]) -> list[str]:
    """Format what "at night" does, by shares."""
    figures = part["figures"]
    rows = []
    for cross, self_ in NIGHTS:
        measured = (figures[f"{cross}/{self_}/{what}"] for what in ("night", "object"))
        rows.append((str(cross), str(self_), *map(percent, measured)))
    return [
        "## The same at night",
        f'The sweep\'s prompts, refined by "at night": {counts(part)}.',
        table((*HEAD[:2], "it is night", "the object is there, in its colour"), rows),
    ]


def markdown(result: dict[str, Any]) -> str:
    """Format the figures as a page."""
    parts = [
        "# Joint attention: what edits keep and change",
        "Made by `python -m benchmarks.joint`, `--sweep` and `--night`. The library's defaults are "
        f"{JOINT.cross} of the run for the text's columns and {JOINT.self_} for the image's "
        "queries and keys, in all layers. Background: outside of the object before and after. In "
        "brackets 95 % bootstrap intervals over prompts, and how many were judged.",
    ]
    for name, format_part in (("defaults", with_defaults), ("night", refined), ("sweep", swept)):
        if name in result:
            parts += format_part(result[name]["result"])
            parts.append(f"*{machine.line(result[name]['machine'])}*")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--sweep", action="store_true", help="other shares, on other prompts")
    other.add_argument("--night", action="store_true", help='those prompts, refined by "at night"')
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe: Any = xattn.demo("mmdit", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge = train_judge(options.judge)
    first = SWEEP_SEED if options.sweep or options.night else FIRST_SEED
    chosen = cases(options.prompts, first)
    if options.night:
        part, found = "night", nights(pipe, judge, chosen, options.steps)
    elif options.sweep:
        part, found = "sweep", measure(pipe, judge, chosen, options.steps, reaches(pipe))
    else:
        tried = [Reach("all", None, DEFAULTS)]
        part, found = "defaults", measure(pipe, judge, chosen, options.steps, tried)
    path = options.out / "joint.json"
    result = json.loads(path.read_text("utf-8")) if path.exists() else {}
    result[part] = {"machine": machine.facts(), "result": found}
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (options.out / "joint.md").write_text(markdown(result), "utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
