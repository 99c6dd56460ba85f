"""Measurement of the edits on the bundled model: what changes, and what stays.

`python -m benchmarks.edits` writes `edits.json`, `edits.md` and `edits.png` to
`benchmarks/results`; `--quick` uses 12 prompts. Every prompt has its own seed, and all of its edits
run in one batch with their source. Each edit is compared with the changed prompt at the same seed
without attention control ("new prompt"). A network trained only on drawn scenes
(`benchmarks.judge`) finds the object and classifies it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import xattn
from benchmarks import machine
from benchmarks.judge import Judge, train_judge
from benchmarks.looking import HALO, iou, look, outside, psnr, saturation, strength
from benchmarks.models import digest_of
from benchmarks.page import EDIT_GOALS, edit_figure
from benchmarks.tally import RESULTS, Tally
from xattn.devices import DTYPE
from xattn.edits.kinds import Edits
from xattn.edits.timing import CROSS_STEPS, SELF_STEPS
from xattn.toyland.world import COLOURS, GROUNDS, HELD_OUT, NOUNS

FIRST_SEED = 30_000_000
STEPS, GUIDANCE = 20, 5.0
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)
FALL = 0.01  # from one weight to the next: still counts as level
CHROMATIC = tuple(name for name in COLOURS if name not in ("white", "black"))


@dataclass(frozen=True)
class Case:
    """One prompt, and what is changed in it."""

    seed: int
    colour: str
    noun: str
    ground: str
    new_colour: str
    new_noun: str

    @property
    def prompt(self) -> str:
        """The source's prompt."""
        return f"a {self.colour} {self.noun} on a {self.ground}"


def cases(count: int, first: int = FIRST_SEED) -> list[Case]:
    """Return prompts of one object; no pair of colour and noun held out of training.

    `first` is the first one's seed, and chooses them all.
    """
    random = np.random.default_rng(first)
    found: list[Case] = []
    while len(found) < count:
        noun, other = random.choice(NOUNS, 2, replace=False)
        colour, new = random.choice(CHROMATIC, 2, replace=False)
        place = random.choice(sorted(GROUNDS))
        tint = random.choice(GROUNDS[place])
        pairs = {(colour, noun), (new, noun), (colour, other)}
        if tint in (colour, new) or pairs & HELD_OUT:
            continue
        seed = first + len(found)
        found.append(Case(seed, str(colour), str(noun), f"{tint} {place}", str(new), str(other)))
    return found


def edits_of(case: Case) -> dict[str, Edits]:
    """Return every edit of a prompt, by name; all with the library's defaults."""
    free = {"cross_steps": 0.0, "self_steps": 0.0}
    recolour = xattn.Replace(case.colour, case.new_colour)
    swap = xattn.Replace(case.noun, case.new_noun)
    longer = xattn.Replace(case.colour, case.new_colour, self_steps=0.8)
    blend = xattn.LocalBlend(case.noun)
    return {
        "recolour, new prompt": xattn.Replace(case.colour, case.new_colour, **free),
        "recolour, held": recolour,
        "recolour, shape held longer": longer,
        "recolour, blended": [recolour, blend],
        "swap, new prompt": xattn.Replace(case.noun, case.new_noun, **free),
        "swap, held": swap,
        "swap, blended": [swap, blend],
        **{
            f"sweep {weight:g}": xattn.Reweight(case.colour, weight)
            for weight in WEIGHTS if weight != 1
        },
    }  # fmt: skip


def place(pipe: Any, case: Case, steps: int, folder: Path) -> Path:
    """Return the file for a case's latents; it differs for other weights or edits."""
    asked = repr((digest_of(pipe), edits_of(case), CROSS_STEPS, SELF_STEPS, GUIDANCE))
    digest = hashlib.sha256(asked.encode()).hexdigest()[:16]
    return folder / f"{steps}-{digest}-{case.seed}.pt"


def drawn(pipe: Any, case: Case, steps: int) -> Tensor:
    """Return the latents of a source and its edits, (1 + edits, channels, height, width)."""
    result = xattn.edit(
        pipe,
        case.prompt,
        *edits_of(case).values(),
        generator=torch.Generator().manual_seed(case.seed),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        output_type="latent",
        trace=False,
    )
    return torch.stack([result.source, *result.images])


def check_kept(pipe: Any, chosen: Sequence[Case], steps: int, folder: Path) -> None:
    """Draw the first kept case again, and refuse latents of another library version.

    Raises:
        ValueError: kept and new latents differ.
    """
    for case in chosen:
        path = place(pipe, case, steps, folder)
        if path.exists():
            kept = torch.load(path, weights_only=True)
            if not torch.allclose(kept, drawn(pipe, case, steps), atol=0.05):
                raise ValueError(f"{folder} was drawn by another version: remove it")
            return


def draw(pipe: Any, case: Case, steps: int, folder: Path) -> dict[str, Image.Image]:
    """Return the source and its edits; draw latents only if not kept from before."""
    edits, path = edits_of(case), place(pipe, case, steps, folder)
    if path.exists():
        latents = torch.load(path, weights_only=True)
    else:
        latents = drawn(pipe, case, steps)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(latents, path)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    images = pipe.image_processor.postprocess(decoded)
    return dict(zip(["source", *edits], images, strict=True))


# -- scores ----------------------------------------------------------------------------------------


def score(case: Case, images: dict[str, Image.Image], judge: Judge, tally: Tally) -> bool:
    """Score the edits of a prompt; return False if the source does not show its object."""
    found = dict(zip(images, look(judge, list(images.values())), strict=True))
    source, original = images["source"], found["source"]
    good = original is not None and (original.noun, original.colour) == (case.noun, case.colour)
    tally.add("source: object and colour as asked", good, case.seed)
    if not good or original is None:
        return False
    for kind in ("recolour", "swap"):
        ways = [name for name in images if name.startswith(f"{kind}, ")]
        background: dict[str, float] = {}
        for way in ways:
            seen = found[way]
            shape = original.mask if seen is None else seen.mask
            background[way] = psnr(source, images[way], outside(original.mask, shape))
            if kind == "recolour":
                right = seen is not None and seen.colour == case.new_colour
                tally.add(f"{way}: new colour", right, case.seed)
                tally.add(f"{way}: background PSNR", background[way], case.seed)
                overlap = 0.0 if seen is None else iou(original.mask, seen.mask)
                tally.add(f"{way}: silhouette IoU", overlap, case.seed)
            else:
                right = seen is not None and seen.noun == case.new_noun
                tally.add(f"{way}: new object", right, case.seed)
                where = outside(original.mask, shape) & original.ground
                tally.add(f"{way}: ground PSNR", psnr(source, images[way], where), case.seed)
                kept = seen is not None and seen.colour == case.colour
                tally.add(f"{way}: colour kept", kept, case.seed)
        if kind == "recolour":
            gain = background["recolour, held"] - background["recolour, new prompt"]
            tally.add("recolour, held: background PSNR above new prompt", gain, case.seed)
    row = [source if w == 1 else images[f"sweep {w:g}"] for w in WEIGHTS]
    levels = [strength(image, original.mask, case.colour) for image in row]
    tints = [saturation(image, original.mask) for image in row]
    for name, values in (("colour strength", levels), ("saturation", tints)):
        rises = bool((np.diff(values) > -FALL).all()) and values[-1] > values[0]
        tally.add(f"sweep: {name} rises", rises, case.seed)
        below = [v for v, w in zip(values, WEIGHTS, strict=True) if w <= 1]
        rises = bool((np.diff(below) > -FALL).all()) and below[-1] > below[0]
        tally.add(f"sweep up to 1: {name} rises", rises, case.seed)
    for weight, level in zip(WEIGHTS, levels, strict=True):
        tally.add(f"sweep: colour strength at {weight:g}", level, case.seed)
    return True


def markdown(result: dict[str, Any]) -> str:
    """Format the figures as a page."""
    facts, result = result["machine"], result["result"]
    figures = result["figures"]
    scored = figures["recolour, held: new colour"]["count"]
    lines = [
        "# Edits: figures",
        "",
        f"Made by `python -m benchmarks.edits`: {result['prompts']} prompts, each with a seed of "
        f"its own, {result['steps']} DDIM steps, guidance {GUIDANCE:g}; cross-attention held for "
        f"{CROSS_STEPS} of the run, self-attention for {SELF_STEPS} (longer: 0.8). "
        f"Edits are scored where the source shows the object and colour asked for. Background and "
        f"ground: outside the object before and after, and {HALO} pixels around it. In brackets "
        f"the 95 % bootstrap interval over {scored} prompts that were.",
        "",
        "| | figure | goal |",
        "|---|---|---|",
    ]
    for name, figure in figures.items():
        lines.append(f"| {name} | {edit_figure(name, figure)} | {EDIT_GOALS.get(name, '')} |")
    return "\n".join([*lines, "", _on_sweeps(figures), "", f"*{machine.line(facts)}*"]) + "\n"


def _on_sweeps(figures: dict[str, Any]) -> str:
    """Explain where sweeps that do not rise throughout fall, and why."""

    def rising(what: str, part: str = "") -> float:
        return 100 * figures[f"sweep{part}: {what} rises"]["mean"]

    whole, below = rising("colour strength"), rising("colour strength", " up to 1")
    tints, pale = rising("saturation"), rising("saturation", " up to 1")
    one, two = (figures[f"sweep: colour strength at {weight}"]["mean"] for weight in (1, 2))
    return (
        f"Sweeps: {whole:.0f} % rise at every weight, and {below:.0f} % up to weight 1. Above 1 "
        f"the object has its colour already ({one:.2f} of the palette's over the whole object, "
        f"windows and outlines among it; {two:.2f} at weight 2), and nothing the model has learned "
        "is more saturated: a fall there is a colour that goes past the palette's, to a darker or "
        f"another tone. Saturation alone rises in {tints:.0f} % ({pale:.0f} % up to 1): without "
        "its word an object often takes another colour, as saturated as the one it lost, and the "
        f"first half of the sweep is then no rise. A fall of up to {FALL:g} counts as level."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edits", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 prompts")
    parser.add_argument("--prompts", type=int, default=104, help="of which some show no object")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="stop in time, with what is done"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, help="a saved pipeline; by default the bundled one")
    parser.add_argument("--kept", type=Path, default=Path(".work/edits"), help="pictures, kept")
    parser.add_argument("--first", type=int, default=0, help="the prompt to begin with")
    parser.add_argument("--only-draw", action="store_true", help="draw what isn't kept, no more")
    parser.add_argument("--only-score", action="store_true", help="score what is kept, no more")
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.model is None:
        pipe = xattn.demo(device="cpu")
    else:
        pipe = StableDiffusionPipeline.from_pretrained(options.model, **{DTYPE: torch.float32})
    pipe.set_progress_bar_config(disable=True)
    if not options.only_draw:
        judge = train_judge(options.judge)
    tally, shown = Tally(), list[tuple[Case, dict[str, Image.Image]]]()
    chosen = cases(12 if options.quick else options.prompts)
    start, done = time.perf_counter(), 0
    check_kept(pipe, chosen[options.first :], options.steps, options.kept)
    for case in chosen[options.first :]:
        there = place(pipe, case, options.steps, options.kept).exists()
        if options.only_score and not there:
            continue
        images = draw(pipe, case, options.steps, options.kept)
        if options.only_draw:  # in another process
            continue
        if score(case, images, judge, tally) and len(shown) < 12:
            shown.append((case, images))
        done += 1
        if time.perf_counter() - start > 60 * options.minutes:
            break
    if options.only_draw:
        return
    result_ = {
        "prompts": done,
        "steps": options.steps,
        "siblings": len(edits_of(chosen[0])),
        "figures": tally.summary(),
    }
    whole = {"quick": options.quick, "machine": machine.facts(), "result": result_}
    (options.out / "edits.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    (options.out / "edits.md").write_text(markdown(whole), "utf-8")
    if shown:
        from xattn.views import sheets

        names = list(shown[0][1])
        cells = [list(images.values()) for _, images in shown]
        rows = [f"{c.prompt}; {c.new_colour}; {c.new_noun}" for c, _ in shown]
        sheets.table(cells, rows, names, side=128).save(options.out / "edits.png", optimize=True)
    print(markdown(whole))


if __name__ == "__main__":
    main()
