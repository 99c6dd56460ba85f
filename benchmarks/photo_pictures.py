"""Pictures for the page *Photographs*, of what was drawn by `benchmarks.photographs`.

`python -m benchmarks.photo_pictures` takes the scenes kept by the default method, and writes to
`docs/images` the first edit of each kind that the judge finds right, and the first that it finds
wrong: nobody chose them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import xattn
from benchmarks.judge import train_judge, verdicts
from benchmarks.photo_scores import is_right
from benchmarks.photographs import STEPS, Case, Drawer, cases
from xattn.inversion.methods import DEFAULT
from xattn.views import sheets

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def wish(case: Case, name: str) -> str:
    """Return what an edit asks for, in few words."""
    first = case.drawn.things[0]
    kind = name.partition(",")[0]
    texts = {
        "recolour": f"{first.colour} to {case.colour}",
        "swap": f"{first.noun} to {case.noun}",
        "add": f"and a {case.added[0]} {case.added[1]}",
        "remove": f"no {case.drawn.things[-1].noun}",
        "night": "at night",
    }
    return texts[kind] + (", no mask" if name.endswith("plain") else "")


Pair = tuple[str, Image.Image, Image.Image]


def first_of_each(
    drawer: Drawer, chosen: Sequence[Case], judge_at: Path
) -> tuple[list[Pair], list[Pair]]:
    """Return the first right and the first wrong edit of each kind: wish, photograph, edit."""
    judge = train_judge(judge_at)
    right: dict[str, Pair] = {}
    wrong: dict[str, Pair] = {}
    for case in chosen:
        kept = drawer.kept(case, DEFAULT)
        if kept is None:
            continue
        images = [kept.image(3 + number) for number in range(len(kept.edits))]
        for name, image, verdict in zip(kept.edits, images, verdicts(judge, images), strict=True):
            if "paper" not in name:
                group = right if is_right(case, name, verdict) else wrong
                group.setdefault(name, (wish(case, name), kept.image(0), image))
    return list(right.values()), list(wrong.values())


def sheet(pairs: Sequence[Pair]) -> Image.Image:
    """Return photographs above their edits."""
    wishes, photos, edits = zip(*pairs, strict=True)
    return sheets.table([photos, edits], ["photo", "edit"], wishes, side=160)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photo_pictures")
    parser.add_argument("--model", default="unet")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--kept", type=Path, default=Path(".work/photographs"))
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"))
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    drawer = Drawer(xattn.demo(options.model, device="cpu"), options.model, STEPS, options.kept)
    groups = first_of_each(drawer, cases(options.count), options.judge)
    for name, pairs in zip(("photographs", "photographs-wrong"), groups, strict=True):
        if pairs:
            sheet(pairs).save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
