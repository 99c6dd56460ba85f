"""Measurement of edits of photographs, on scenes with exact masks that no model was trained on.

`python -m benchmarks.photographs --model unet` draws, scores and writes `photographs.json`,
`photographs.md` and a picture to `benchmarks/results`; figures of other models stay. Each method
of inversion makes the same edits of the same scenes, which are given as photographs: in scenes of
one object a recolour, a swap, an added object and night; in scenes of two a recolour and a swap of
the first, the second removed, and night. A recolour is drawn plain, and blended by the object's
word; swaps, additions and removals are blended. "paper's mask" is LocalBlend without the step that
photographs add to it. What is drawn is kept in `--kept`, so an interrupted run goes on where it
stopped; `--only-score` scores what there is. `--choose` draws other scenes, to choose how far
masks are narrowed, and how long edits are held to the photograph.

`benchmarks.photo_scores` says how pictures are scored, `--times` measures the times alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import xattn
from benchmarks import machine, photo_page
from benchmarks.edits import CHROMATIC
from benchmarks.judge import train_judge
from benchmarks.models import digest_of
from benchmarks.photo_scores import Kept, score
from benchmarks.tally import RESULTS, Tally
from benchmarks.timing import compare
from xattn.api.invert import kind_of
from xattn.edits.kinds import Edits
from xattn.inversion.methods import METHODS
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import HELD_OUT, NOUNS
from xattn.views import sheets

FIRST_SEED = 40_000_000
CHOICE_SEED = 41_000_000
STEPS, GUIDANCE = 20, 5.0
SHARE = {"direct": 1, "null-text": 4, "fixed-point": 4}
"""A method draws every n-th pair of scenes, for its cost; one that is not here every second."""

CHOICE = "direct, from "
HELD = "direct, held 0.36"
"""Direct inversion whose edits begin as late as those of "edit-friendly"."""
SHARES, STARTS = (0.0, 0.3, 0.5, 0.7), (0.0, 0.2, 0.36)
"""To choose among: of the largest change, below which masks are narrowed; of the run, before which
edits are held to the photograph."""


@dataclass(frozen=True)
class Case:
    """A picture of one or two objects, and what is changed in it.

    Attributes:
        drawn: the scene.
        colour: the first object's new colour.
        noun: its new noun.
        added: colour and noun of an object to add, in scenes of one.
    """

    drawn: Scene
    colour: str
    noun: str
    added: tuple[str, str]

    def narrowings(self) -> dict[str, Edits]:
        """Return a recolour and a swap with masks narrowed more and more."""
        thing = self.drawn.things[0]
        found: dict[str, Edits] = {}
        for share in SHARES:
            blend = xattn.LocalBlend(thing.noun, changed=share)
            found[f"recolour, {share:g}"] = [xattn.Replace(thing.colour, self.colour), blend]
            found[f"swap, {share:g}"] = [xattn.Replace(thing.noun, self.noun), blend]
        return found

    def edits(self, method: str) -> dict[str, Edits]:
        """Return the edits, by name; "direct" makes some with the paper's masks, too."""
        if method.startswith(CHOICE):
            return self.narrowings()
        caption, thing = self.drawn.caption, self.drawn.things[0]
        word = xattn.LocalBlend(thing.noun)
        recolour = xattn.Replace(thing.colour, self.colour)
        found: dict[str, Edits] = {
            "recolour, plain": recolour,
            "recolour": [recolour, word],
            "swap": [xattn.Replace(thing.noun, self.noun), word],
            "night": xattn.Refine(f"{caption} at night"),
        }
        if method == "direct":
            paper = xattn.LocalBlend(thing.noun, changed=0)
            found |= {
                "recolour, paper's mask": [recolour, paper],
                "swap, paper's mask": [xattn.Replace(thing.noun, self.noun), paper],
            }
        if len(self.drawn.things) == 1:
            colour, noun = self.added
            longer = caption.replace(thing.noun, f"{thing.noun} and {_a(colour)} {noun}", 1)
            found["add"] = [xattn.Refine(longer), xattn.LocalBlend(target_words=noun)]
        else:
            other = self.drawn.things[1]
            shorter = caption.replace(f" and {_a(other.colour)} {other.noun}", "", 1)
            found["remove"] = [xattn.Refine(shorter), xattn.LocalBlend(source_words=other.noun)]
        return found


def _a(colour: str) -> str:
    return f"an {colour}" if colour == "orange" else f"a {colour}"


def cases(count: int, first: int = FIRST_SEED) -> list[Case]:
    """Return unseen scenes of one and of two objects in turn, by day, whose colours are said.

    No edit asks for a pair of colour and noun that was held out of training.
    """
    random = np.random.default_rng(first)
    found: list[Case] = []
    seed = first - 1
    while len(found) < count:
        seed += 1
        drawn = scene(seed)
        if len(drawn.things) != 1 + len(found) % 2 or drawn.night:
            continue
        if not all(thing.colour_said and not thing.place_word for thing in drawn.things):
            continue
        thing, nouns = drawn.things[0], [each.noun for each in drawn.things]
        taken = {drawn.ground.colour, *(each.colour for each in drawn.things)}
        colour, other = random.choice([name for name in CHROMATIC if name not in taken], 2, False)
        noun, added = random.choice([name for name in NOUNS if name not in nouns], 2, False)
        if {(colour, thing.noun), (thing.colour, noun), (other, added)} & HELD_OUT:
            continue
        found.append(Case(drawn, str(colour), str(noun), (str(other), str(added))))
    return found


# -- drawing


@dataclass
class Drawer:
    """Draws cases by a model, and keeps what it drew.

    Attributes:
        pipe: the pipeline.
        model: its name.
        steps: of the schedule.
        folder: where drawn cases are kept.
        version: of the library.
        weights: a digest of the model's weights, by default the pipeline's.
    """

    pipe: Any
    model: str
    steps: int
    folder: Path
    version: str = field(default_factory=lambda: xattn.__version__)
    weights: str = ""

    def __post_init__(self) -> None:
        self.weights = self.weights or digest_of(self.pipe)

    def path(self, case: Case, method: str) -> Path:
        """Return the file of a case."""
        made_by = (self.version, self.weights)
        asked = repr((case.drawn.caption, case.edits(method), self.steps, GUIDANCE, *made_by))
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        return self.folder / f"{self.model}-{case.drawn.seed}-{method}-{digest}.npz"

    def kept(self, case: Case, method: str) -> Kept | None:
        """Return a case drawn before, or None."""
        path = self.path(case, method)
        return Kept.load(path) if path.exists() else None

    def draw(self, case: Case, method: str) -> Kept:
        """Invert and edit a case; CPU seconds are those of this process."""
        drawn, began = case.drawn, time.process_time()
        inversion = xattn.invert(
            self.pipe, drawn.image, drawn.caption, method=method.partition(",")[0],
            steps=self.steps,
            guidance_scale=GUIDANCE, measure=False,
            generator=torch.Generator().manual_seed(drawn.seed),
        )  # fmt: skip
        inverted = time.process_time()
        start = float(method.rpartition(" ")[2]) if ", " in method else None
        results = [
            xattn.edit(
                self.pipe, drawn.caption, *edits, source=inversion, trace=False, start=start,
                guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(drawn.seed),
            )
            for edits in together(case, method)
        ]  # fmt: skip
        ended = time.process_time()
        edited = [image for result in results for image in result.images]
        pictures = [drawn.image, inversion.reconstruction, results[0].source, *edited]
        kept = Kept(
            np.stack([np.asarray(each.convert("RGB")) for each in pictures]),
            tuple(case.edits(method)), inversion.calls, inverted - began, ended - inverted,
        )  # fmt: skip
        kept.save(self.path(case, method))
        return kept


def together(case: Case, method: str) -> list[list[Edits]]:
    """Return the edits of a case in groups of those that one call can make."""
    edits = list(case.edits(method).values())
    each = METHODS[method.partition(",")[0]].edits or len(edits)
    return [edits[start : start + each] for start in range(0, len(edits), each)]


def drawn_by(names: Sequence[str], number: int) -> list[str]:
    """Return the methods that draw the case of a number; a scene of one object, one of two."""
    return [name for name in names if number // 2 % SHARE.get(name.partition(",")[0], 2) == 0]


# -- times


def times(pipe: Any, steps: int, pairs: int) -> dict[str, Any]:
    """Time a single recolour: plain, of an inversion, and as a whole, inversion included."""
    case = cases(1)[0]
    drawn, edit = case.drawn, case.edits("direct")["recolour"]
    common = {"trace": False, "guidance_scale": GUIDANCE}
    inversion = xattn.invert(pipe, drawn.image, drawn.caption, steps=steps)
    new = drawn.caption.replace(drawn.things[0].colour, case.colour)

    def plain() -> Any:
        noise = torch.Generator().manual_seed(1)
        return xattn.edit(
            pipe, drawn.caption, edit, num_inference_steps=steps, generator=noise, **common
        )

    def batch() -> Any:
        noise = [torch.Generator().manual_seed(1) for _ in range(2)]
        return pipe(
            [drawn.caption, new], num_inference_steps=steps, generator=noise,
            guidance_scale=GUIDANCE,
        )  # fmt: skip

    def again() -> Any:
        return xattn.edit(pipe, drawn.caption, edit, source=inversion, **common)

    def whole() -> Any:
        return xattn.edit(
            pipe, drawn.caption, edit, image=drawn.image, num_inference_steps=steps, **common
        )

    calls = {"edit of an inversion": again, "direct as a whole": whole, "plain batch": batch}
    return {"steps": steps, **compare(plain, calls, pairs)}


# -- all of it


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--count", type=int, default=24, help="of scenes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--model", default="unet", help="unet, contextual or mmdit")
    parser.add_argument("--methods", help="by semicolons; all that the model can have by default")
    parser.add_argument("--choose", action="store_true", help="masks and start, by other scenes")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no scene after these")
    parser.add_argument("--only-score", action="store_true", help="score what is kept, no more")
    parser.add_argument("--times", type=int, default=0, help="pairs of calls to time, no more")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--kept", type=Path, default=Path(".work/photographs"), help="of drawings")
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"), help="kept here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    pipe = xattn.demo(options.model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    if options.times:
        found = times(pipe, options.steps, options.times)
        write(options.out, options.model, {"times": found})
        return
    kind = kind_of(pipe)
    names = [name for name, each in METHODS.items() if kind in each.kinds]
    names = options.methods.split(";") if options.methods else [*names, HELD]
    names = [f"{CHOICE}{start:g}" for start in STARTS] if options.choose else names
    chosen = cases(options.count, CHOICE_SEED if options.choose else FIRST_SEED)
    options.kept.mkdir(parents=True, exist_ok=True)
    drawer = Drawer(pipe, options.model, options.steps, options.kept)
    ends = time.monotonic() + 60 * options.minutes
    for number, case in enumerate(chosen):
        if options.only_score or time.monotonic() > ends:
            break
        for name in drawn_by(names, number):
            if drawer.kept(case, name) is None:
                drawer.draw(case, name)
    figures, scenes = scored(pipe, drawer, chosen, names, options.judge)
    if options.choose:
        write(options.out, options.model, {"choice": {"scenes": scenes, "figures": figures}})
        return
    write(options.out, options.model, {"scenes": scenes, "steps": options.steps,
                                       "machine": machine.facts(), "figures": figures})  # fmt: skip
    picture(drawer, chosen, names).save(options.out / f"photographs-{options.model}.png")


def scored(
    pipe: Any, drawer: Drawer, chosen: Sequence[Case], names: Sequence[str], place: Path
) -> tuple[dict[str, Any], int]:
    """Return the figures of what was drawn, and the number of scenes."""
    judge, tally, scenes = train_judge(place), Tally(), 0
    for number, case in enumerate(chosen):
        kept = {name: drawer.kept(case, name) for name in drawn_by(names, number)}
        scenes += any(kept.values())
        for name, one in kept.items():
            if one is not None:
                score(pipe, case, name, one, judge, tally)
    return tally.summary(), scenes


def write(out: Path, model: str, found: dict[str, Any]) -> None:
    """Put a model's figures among those there are, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "photographs.json"
    whole = json.loads(path.read_text("utf-8")) if path.exists() else {}
    whole[model] = {**whole.get(model, {}), **found}
    path.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    (out / "photographs.md").write_text(photo_page.page(whole), "utf-8")


def picture(drawer: Drawer, chosen: Sequence[Case], names: Sequence[str]) -> Image.Image:
    """Return the first scene of one object, by every method."""
    rows, labels, columns = [], [], list(chosen[0].edits("ddim"))
    for name in names:
        kept = drawer.kept(chosen[0], name)
        if kept is not None:
            order = [0, 2, *(3 + kept.edits.index(each) for each in columns)]
            rows.append([kept.image(n) for n in order])
            labels.append(name)
    return sheets.table(rows, labels, ["photo", "source", *columns], side=128)


if __name__ == "__main__":
    main()
