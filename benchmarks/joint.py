"""Which shares of the run, and which layers, should follow the source in joint attention.

`python -m benchmarks.joint` writes `joint.json` and `joint.md` to `benchmarks/results`; `--quick`
uses 4 prompts and few shares. Words are replaced in the bundled joint-attention model while the
text's columns follow the source for one share of the steps, and the image's queries and keys for
another, in all layers and in each half of them; colours also with a blend. Shares of 0 and 0 are
the new prompt without control. Prompts, seeds and scores are those of `benchmarks.edits`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import xattn
from benchmarks import machine
from benchmarks.edits import STEPS, Case, cases, look, outside, psnr
from benchmarks.judge import Judge, train_judge
from benchmarks.page import table
from benchmarks.toyland import GUIDANCE, RESULTS, Tally, decode, percent
from xattn.edits.kinds import Edits
from xattn.edits.timing import JOINT
from xattn.models import family_of

SHARES, FEW = (0.0, 0.2, 0.4, 0.8), (0.0, 0.4)
KINDS = {
    "recolour": "the new colour",
    "recolour, blended": "the new colour",
    "swap": "the new object",
}

Key = tuple[str, str, float, float]  # kind, layers, shares of text's columns and of the image's


def reaches(pipe: Any) -> dict[str, tuple[str, ...] | None]:
    """Return the layers to edit, by name: all of them, the first half, the second."""
    names = [layer.name for layer in family_of(pipe.transformer).layers(pipe.transformer)]
    half = len(names) // 2
    return {"all": None, "first half": tuple(names[:half]), "second half": tuple(names[half:])}


def edits_of(case: Case, shares: Sequence[float]) -> dict[tuple[str, float, float], Edits]:
    """Return every edit of a prompt, by kind and by shares."""
    found: dict[tuple[str, float, float], Edits] = {}
    for cross, self_ in product(shares, shares):
        timing = {"cross_steps": cross, "self_steps": self_}
        recolour = xattn.Replace(case.colour, case.new_colour, **timing)
        found["recolour", cross, self_] = recolour
        found["recolour, blended", cross, self_] = [recolour, xattn.LocalBlend(case.noun)]
        found["swap", cross, self_] = xattn.Replace(case.noun, case.new_noun, **timing)
    return found


@torch.no_grad()
def draw(
    pipe: Any, case: Case, steps: int, shares: Sequence[float]
) -> tuple[Image.Image, dict[Key, Image.Image]]:
    """Return the source of a case, and its edits."""
    asked = edits_of(case, shares)
    latents: list[Any] = []
    keys: list[Key] = []
    for name, layers in reaches(pipe).items():
        result = xattn.edit(
            pipe,
            case.prompt,
            *asked.values(),
            layers=layers,
            generator=torch.Generator().manual_seed(case.seed),
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="latent",
            trace=False,
        )
        if not latents:
            latents.append(result.source)
        latents += result.images
        keys += [(kind, name, cross, self_) for kind, cross, self_ in asked]
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


def markdown(result: dict[str, Any]) -> str:
    """Format the figures as a page."""
    facts, result = result["machine"], result["result"]
    parts = [
        "# Joint attention: what to follow, where, and for how long",
        f"Made by `python -m benchmarks.joint`: {result['prompts']} prompts, of which "
        f"{result['scored']} show the object asked for, {result['steps']} steps, guidance "
        f"{GUIDANCE:g}. The library's defaults are {JOINT.cross} of the run for the text's "
        f"columns and {JOINT.self_} for the image's queries and keys, in all layers. Background: "
        "outside of the object before and after. In brackets 95 % bootstrap intervals over "
        "prompts.",
    ]
    for kind, aim in KINDS.items():
        rows = []
        for name, figures in result["figures"].items():
            of, layers, cross, self_ = name.split("/")
            if of == kind:
                kept = figures["kept"]
                shown = f"{kept['mean']:.1f} dB ({kept['low']:.1f} to {kept['high']:.1f})"
                rows.append((layers, cross, self_, shown, percent(figures["done"])))
        head = ("layers", "text's columns", "image's queries and keys", "background kept", aim)
        parts += [f"## {kind.capitalize()}", table(head, rows)]
    return "\n\n".join([*parts, f"*{machine.line(facts)}*"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 prompts, shares of 0 and 0.4")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe: Any = xattn.demo("mmdit", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge, tally = train_judge(options.judge), Tally()
    chosen, shares = cases(4 if options.quick else options.prompts), SHARES
    scored = 0
    for case in chosen:
        if not shows(pipe, case, options.steps, judge):
            continue
        drawn = draw(pipe, case, options.steps, FEW if options.quick else shares)
        scored += score(case, *drawn, judge, tally)
        print(f"{case.prompt}: {scored} scored", flush=True)
    figures: dict[str, Any] = {}
    for name, value in tally.summary().items():
        key, _, what = name.rpartition("/")
        figures.setdefault(key, {})[what] = value
    found = {
        "prompts": len(chosen), "scored": scored, "steps": options.steps, "figures": figures
    }  # fmt: skip
    result = {"quick": options.quick, "machine": machine.facts(), "result": found}
    (options.out / "joint.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (options.out / "joint.md").write_text(markdown(result), "utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
