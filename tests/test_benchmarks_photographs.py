"""What the benchmark of photographs asks for and counts, by scenes that can be checked by eye."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import xattn
from benchmarks import photo_page
from benchmarks.judge import Seen, Verdict
from benchmarks.photo_scores import Kept, is_right, ssim, structure
from benchmarks.photographs import Case, Drawer, cases, drawn_by, together
from benchmarks.tally import Tally
from xattn.edits.kinds import Refine


def verdict(*things: tuple[str, str], dark: bool = False) -> Verdict:
    return Verdict(tuple(Seen(noun, colour, 500, 0.0) for colour, noun in things), "", dark)


@pytest.fixture(scope="module")
def pair() -> list[Case]:
    return cases(2)


def test_scenes_of_one_and_two_objects_take_turns_and_say_every_colour(pair: list[Case]) -> None:
    one, two = pair
    assert [len(case.drawn.things) for case in pair] == [1, 2]
    for case in pair:
        assert not case.drawn.night
        for thing in case.drawn.things:
            assert f"{thing.colour} {thing.noun}" in case.drawn.caption
    added = one.edits("ddim")["add"]
    assert isinstance(added, list)
    assert isinstance(added[0], Refine)
    assert f" and a {one.added[0]} {one.added[1]} on " in added[0].prompt.replace(" an ", " a ")
    removed = two.edits("ddim")["remove"]
    assert isinstance(removed, list)
    assert isinstance(removed[0], Refine)
    gone, stays = two.drawn.things[1].noun, two.drawn.things[0].noun
    assert gone not in removed[0].prompt.split()
    assert stays in removed[0].prompt.split()


def test_an_edit_is_right_only_with_all_it_should_show_and_nothing_old(pair: list[Case]) -> None:
    case = pair[1]
    (colour, noun), other = ((thing.colour, thing.noun) for thing in case.drawn.things)
    assert is_right(case, "recolour, plain", verdict((case.colour, noun), other))
    assert not is_right(case, "recolour", verdict((case.colour, noun)))
    assert not is_right(case, "recolour", verdict((case.colour, noun), other, (colour, noun)))
    assert is_right(case, "swap", verdict((colour, case.noun), other))
    assert not is_right(case, "swap", verdict((colour, case.noun), (colour, noun)))
    assert is_right(case, "remove", verdict((colour, noun)))
    assert not is_right(case, "remove", verdict((colour, noun), other))
    assert is_right(case, "night", verdict((colour, noun), other, dark=True))
    assert not is_right(case, "night", verdict((colour, noun), other))
    first = pair[0]
    there = first.drawn.things[0]
    assert is_right(first, "add", verdict((there.colour, there.noun), first.added))
    assert not is_right(first, "add", verdict(first.added))


def test_pictures_that_are_the_same_are_alike_in_every_measure() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    one, two = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    where = np.ones((32, 32), dtype=bool)
    assert ssim(one, one, where) == pytest.approx(1)
    assert ssim(one, two, where) < 0
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert structure(latents, 3 * latents) == pytest.approx(0, abs=1e-9)
    assert structure(latents, latents.flip(-1)) > 0.1


def test_slow_methods_draw_fewer_scenes_and_some_edits_one_by_one(pair: list[Case]) -> None:
    counts = {
        name: sum(name in drawn_by(["direct", "ddim", "null-text"], n) for n in range(8))
        for name in ("direct", "ddim", "null-text")
    }
    assert counts == {"direct": 8, "ddim": 4, "null-text": 2}
    assert [len(group) for group in together(pair[0], "ddim")] == [5]
    assert [len(group) for group in together(pair[0], "uniedit")] == [1] * 5


def test_what_was_drawn_is_kept_whole_and_the_page_shows_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    kept = Kept(np.zeros((4, 8, 8, 3), np.uint8), ("recolour",), 20, 1.5, 3.0)
    kept.save(path)
    loaded = Kept.load(path)
    assert (loaded.edits, loaded.calls, loaded.inverting, loaded.editing) == (
        kept.edits, kept.calls, kept.inverting, kept.editing,
    )  # fmt: skip
    tally = Tally()
    for name, value in {
        "direct: fidelity": 60.0, "direct: denoiser calls": 20,
        "direct: CPU time of inversion": 0.5, "direct, recolour: right": 1.0,
        "direct, recolour: background PSNR": 41.25, "direct, recolour: structure": 0.002,
        "reconstruction: objects and colours seen": 1.0,
    }.items():  # fmt: skip
        tally.add(name, value, 1)
    text = photo_page.page({"unet": {"scenes": 1, "steps": 20, "figures": tally.summary()}})
    assert "| direct | 1 | 100 (100 to 100) | 41.2 (41.2 to 41.2) | 2.0 (2.0 to 2.0) |" in text


def test_what_was_drawn_by_other_weights_is_not_taken(pair: list[Case], tmp_path: Path) -> None:
    part = nn.Linear(2, 2)
    pipe = SimpleNamespace(components={"unet": part, "scheduler": None})
    paths = [Drawer(pipe, "unet", 20, tmp_path).path(pair[0], "direct") for _ in range(2)]
    assert paths[0] == paths[1]
    with torch.no_grad():
        part.bias[0] += 1e-6
    assert Drawer(pipe, "unet", 20, tmp_path).path(pair[0], "direct") != paths[0]


def test_a_photographs_masks_are_the_papers_where_asked(pair: list[Case]) -> None:
    edits = pair[0].edits("direct")
    paper, default = edits["recolour, paper's mask"], edits["recolour"]
    assert isinstance(paper, list)
    assert isinstance(default, list)
    blends = [each[1] for each in (paper, default)]
    assert all(isinstance(blend, xattn.LocalBlend) for blend in blends)
    assert [getattr(blend, "changed", 1) for blend in blends] == [0, None]
