"""Measurement of edits of photographs, on scenes with exact masks that no model was trained on.

`python -m benchmarks.photographs` writes `photographs.json` and `photographs.png` to
`benchmarks/results`; `--count 10` takes fewer scenes. Each method of inversion makes the same
edits of the same pictures: a recolour and a swap, each plain, blended by the object's word, and
held to the exact mask. Background is what lies outside the object and a halo around it; its PSNR is
to the autoencoder's own reconstruction, the most that an edit can keep, and its SSIM is the mean
over 8 x 8 windows. Structure distance is that of the self-similarity of the autoencoder's latents:
the mean squared difference of the cosines between the latents of all pairs of cells, in the source
and in the edit (the distance of Tumanyan et al. 2022, with those features in the place of DINO's).
The judge of `benchmarks.judge` says which object and colour it sees.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import xattn
from benchmarks import machine
from benchmarks.edits import CHROMATIC, look, outside, psnr
from benchmarks.judge import Judge, train_judge
from benchmarks.toyland import RESULTS, Tally
from xattn.api.invert import encoded, kind_of
from xattn.edits.kinds import Edits
from xattn.inversion.methods import METHODS
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import NOUNS
from xattn.views import sheets

FIRST_SEED = 40_000_000
STEPS, GUIDANCE = 20, 5.0

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """A picture of one object, and what is changed in it."""

    drawn: Scene
    new_colour: str
    new_noun: str

    @property
    def edits(self) -> dict[str, Edits]:
        """The edits, by name."""
        thing = self.drawn.things[0]
        exact = xattn.LocalBlend(mask=outside_of(self.drawn.thing_masks[0]), start=0)
        word = xattn.LocalBlend(thing.noun)
        recolour = xattn.Replace(thing.colour, self.new_colour)
        swap = xattn.Replace(thing.noun, self.new_noun)
        return {
            "recolour": recolour,
            "recolour, blended": [recolour, word],
            "recolour, mask": [recolour, exact],
            "swap": swap,
            "swap, blended": [swap, word],
        }


def outside_of(mask: Mask) -> Mask:
    """Return a mask with the halo around it."""
    return ~outside(mask)


def cases(count: int, first: int = FIRST_SEED) -> list[Case]:
    """Return unseen scenes of one object by day, each with another colour and noun."""
    random = np.random.default_rng(first)
    found: list[Case] = []
    seed = first
    while len(found) < count:
        drawn, seed = scene(seed), seed + 1
        if len(drawn.things) != 1 or drawn.night:
            continue
        thing = drawn.things[0]
        taken = {thing.colour, drawn.ground.colour}
        colour = random.choice([name for name in CHROMATIC if name not in taken])
        noun = random.choice([name for name in NOUNS if name != thing.noun])
        found.append(Case(drawn, str(colour), str(noun)))
    return found


def ssim(one: Image.Image, two: Image.Image, where: Mask) -> float:
    """Return the structural similarity inside a mask (Wang et al. 2004), 8 x 8 windows of grey."""
    first, second = (
        torch.from_numpy(np.asarray(each.convert("L"), dtype=np.float32))[None, None]
        for each in (one, two)
    )

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 8, stride=1)

    a, b = mean(first), mean(second)
    var_a, var_b = mean(first**2) - a**2, mean(second**2) - b**2
    both = mean(first * second) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    map_ = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    whole = mean(torch.from_numpy(where.astype(np.float32))[None, None]) > 0.999
    return float(map_[whole].mean())


def structure(one: Tensor, two: Tensor) -> float:
    """Return the mean squared difference of two latents' self-similarities.

    Args:
        one: (channels, height, width).
        two: of the same shape.
    """
    similar = [F.normalize(each.flatten(1), dim=0) for each in (one, two)]
    first, second = (each.T @ each for each in similar)  # (cells, cells)
    return float((first - second).square().mean())


def score(pipe: Any, case: Case, method: str, result: Any, judge: Judge, tally: Tally) -> None:
    """Score the edits of a picture by one method."""
    inversion, seed = result.inversion, case.drawn.seed
    base = inversion.reconstruction
    tally.add(f"{method}: fidelity", min(60.0, result.fidelity.to_reconstruction), seed)
    tally.add(f"{method}: denoiser calls", inversion.calls, seed)
    found = look(judge, list(result.images))
    start = encoded(pipe, base)[0]
    for (name, _), image, seen in zip(case.edits.items(), result.images, found, strict=True):
        masks = [case.drawn.thing_masks[0], *([] if seen is None else [seen.mask])]
        where = outside(*masks)
        right = seen is not None and (
            seen.colour == case.new_colour if "recolour" in name else seen.noun == case.new_noun
        )
        label = f"{method}, {name}"
        error = np.asarray(image, dtype=float)[where] - np.asarray(base, dtype=float)[where]
        tally.add(f"{label}: right", right, seed)
        tally.add(f"{label}: background PSNR", psnr(base, image, where), seed)
        tally.add(f"{label}: background SSIM", ssim(base, image, where), seed)
        tally.add(f"{label}: background MSE", float(np.square(error / 255).mean()), seed)
        tally.add(f"{label}: structure", structure(start, encoded(pipe, image)[0]), seed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="of scenes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--model", default="unet", help="unet, contextual, mmdit, or a folder")
    parser.add_argument("--methods", help="by commas; all that the model can have by default")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="seed of the first scene")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"), help="kept here")
    options = parser.parse_args(arguments)
    pipe = xattn.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge, tally = train_judge(options.judge), Tally()
    kind = kind_of(pipe)
    names = [name for name, each in METHODS.items() if kind in each.kinds]
    names = options.methods.split(",") if options.methods else names
    rows: list[list[Image.Image]] = []
    chosen = cases(options.count, options.first)
    for case in chosen:
        for name in names:
            result = xattn.edit(
                pipe, case.drawn.caption, *case.edits.values(), image=case.drawn.image,
                method=name, num_inference_steps=options.steps, guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(case.drawn.seed), trace=False,
            )  # fmt: skip
            score(pipe, case, name, result, judge, tally)
            if len(rows) < 4 * len(names):
                rows.append([case.drawn.image, result.source, *result.images])
    whole = {
        "scenes": len(chosen), "steps": options.steps, "model": options.model,
        "machine": machine.facts(), "figures": tally.summary(),
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "photographs.json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    columns = ["photo", "source", *chosen[0].edits]
    labels = [names[n % len(names)] for n in range(len(rows))]
    sheets.table(rows, labels, columns, side=128).save(options.out / "photographs.png")
    for name, figure in whole["figures"].items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
