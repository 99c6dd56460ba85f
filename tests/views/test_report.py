"""The report as a file: what it holds, how large it is, what it lets in. See also the browser."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.runs import LAYERS, make_run, tensors_of
from xattn.maps import daam
from xattn.maps.measures import MEASURES
from xattn.records.run import Layer, Run
from xattn.results.trace import Trace
from xattn.text.prompt import Prompt
from xattn.views.report import packing
from xattn.views.report import page as report
from xattn.views.report.page import Subject


def data_of(page: str) -> dict:
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1]  # type: ignore[index]
    )


def unpacked(subject: dict, word: int) -> list[np.ndarray]:
    """Return every map of a word, in the page's order, back in its own unit."""
    grids = subject["grids"]
    order = [grids["total"], *grids["layers"], *grids["steps"], *grids["fine"]]
    order += [grid for layer in grids["heads"] for grid in layer]
    raw = np.frombuffer(base64.b64decode(subject["data"][word]), np.uint8)
    assert raw.size == sum(h * w for h, w in order)
    assert len(subject["scales"][word]) == len(order)
    found, at = [], 0
    for (h, w), scale in zip(order, subject["scales"][word], strict=True):
        found.append(raw[at : at + h * w].reshape(h, w) / 255 * scale)
        at += h * w
    return found


def test_the_steps_of_a_probe_are_called_levels() -> None:
    run = make_run(steps=3)
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert (subject["axis"], subject["whole"]) == ("step", "sum of 3 steps")
    assert [step["name"] for step in subject["steps"]] == ["step 0", "step 1", "step 2"]
    probed = replace(run, info={**run.info, "levels": [0.9, 0.5, 0.25]})
    (subject,) = data_of(report.page([Subject(probed)]))["subjects"]
    assert (subject["axis"], subject["whole"]) == ("level", "sum of 3 levels")
    assert [step["name"] for step in subject["steps"]] == ["level 0.9", "level 0.5", "level 0.25"]
    assert ["levels", "3 of 3"] in subject["facts"]


def test_the_first_noun_is_shown_first() -> None:
    run = make_run(["a wonderful car on a lawn"])
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert subject["words"][subject["start"]] == "car"


def test_the_maps_in_the_page_are_those_of_the_run() -> None:
    run = make_run(steps=3)
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert subject["words"] == ["a", "red", "car", "on", "a", "lawn"]
    found = unpacked(subject, 1)
    whole = daam.token_maps(run, [2])[0]
    wanted = [whole, *(daam.layer_maps(run, n, [2])[0] for n in range(4))]
    wanted += list(daam.step_token_maps(run, [2])[:, 0])
    wanted += [daam.step_layer_maps(run, n, [2])[s, 0] for s in range(3) for n in range(4)]
    wanted += [daam.head_maps(run, n, [2])[h, 0] for n in range(4) for h in range(2)]
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=float(want.max()) / 255)


def test_a_word_of_several_tokens_is_their_mean() -> None:
    run = make_run(["a red-hot car"])
    tokens = run.prompts[0].tokens
    split = Prompt(
        "a red-hot car",
        (
            tokens[0],
            *(type(tokens[0])(p, p, "red-hot"[a:b], 2 + a, 2 + b) for p, a, b in
              ((2, 0, 3), (3, 3, 7))),
            type(tokens[0])(4, 4, "car", 10, 13),
        ),
        77,
        end=5,
    )  # fmt: skip
    wide = make_run(["a b c d"])
    run = Run(**{**vars(wide), "prompts": (split,)})
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert subject["words"] == ["a", "red-hot", "car"]
    want = daam.token_maps(run, [2, 3]).mean(0)
    np.testing.assert_allclose(unpacked(subject, 1)[0], want, atol=float(want.max()) / 255)


def test_the_prompt_stands_there_whole_with_its_words_to_click() -> None:
    text = "  A «red» car, on a lawn!"
    run = make_run([text], words=[2, 3])
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert "".join(part["text"] for part in subject["parts"]) == text
    clickable = {
        part["text"]: part["word"] for part in subject["parts"] if part["word"] is not None
    }
    assert [subject["words"][n] for n in clickable.values()] == list(clickable)
    assert "lawn" not in clickable


def sd15() -> tuple[Layer, ...]:
    """SD 1.5's cross-attention at 512 pixels: 16 layers."""
    grids = [64] * 2 + [32] * 2 + [16] * 2 + [8] + [16] * 3 + [32] * 3 + [64] * 3
    return tuple(Layer(f"up_blocks.{n}.attn2", (side, side), 8) for n, side in enumerate(grids))


def test_fifty_steps_ten_words_sixteen_layers_stay_under_ten_megabytes() -> None:
    words = "a red car on the green lawn under old trees"
    run = make_run(
        [words], steps=50, layers=sd15(), latent=(64, 64), keep=["step", "layer"],
        dtype=torch.float16,
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    page = report.page([Subject(run, 0, Image.fromarray(noise))])  # the worst of pictures
    assert len(page.encode()) < 10_000_000
    (subject,) = data_of(page)["subjects"]
    assert len(subject["words"]) == 10
    assert len(subject["grids"]["fine"]) == 50 * 16
    assert max(max(grid) for grid in subject["grids"]["fine"]) == 32


def test_larger_runs_get_coarser_maps_not_a_larger_page() -> None:
    grids = packing.grids_of(make_run(layers=sd15() * 4, latent=(128, 128)), 40, 50, packing.BUDGET)
    assert packing.cost_of(grids, 40) <= packing.BUDGET
    assert grids["total"] == (48, 48)
    wide = packing.grids_of(make_run(latent=(48, 96), layers=LAYERS[:1]), 1, 1, packing.BUDGET)
    assert wide["total"] == (32, 64)


@pytest.mark.slow
def test_a_very_large_run_shows_fewer_steps_and_says_so() -> None:
    layers = tuple(Layer(f"up_blocks.{n}.attn2", (6, 6), 10) for n in range(70))
    run = make_run(
        [" ".join(f"w{n}" for n in range(50))], steps=100, layers=layers, latent=(8, 8),
        keep=["step", "layer"], dtype=torch.float16,
    )  # fmt: skip
    page = report.page([Subject(run)])
    assert len(page.encode()) < 10_000_000
    (subject,) = data_of(page)["subjects"]
    shown = [step["index"] for step in subject["steps"]]
    assert 60 < len(shown) < 100  # as many as there is room for
    assert (shown[0], shown[-1]) == (0, 99)
    assert max(np.diff(shown)) - min(np.diff(shown)) <= 1
    facts = dict(subject["facts"])
    assert facts["steps"] == "100 of 100"
    assert facts["steps shown"].startswith(f"{len(shown)} of 100, evenly spread")
    want = F.adaptive_avg_pool2d(daam.step_token_maps(run, [1])[shown[7]], 4)[0]
    got = unpacked(subject, 0)[1 + 70 + 7]  # of the eighth step that is shown
    np.testing.assert_allclose(got, want, atol=float(want.max()) / 100)
    wide = replace(run, latent=(128, 128))
    for images in (1, 16):
        count, grids = packing.fitting_grids(wide, 50, 100, packing.BUDGET // images)
        assert count < 100
        assert packing.cost_of(grids, 50) <= packing.BUDGET // images
    small = make_run(steps=100)
    facts = dict(data_of(report.page([Subject(small)]))["subjects"][0]["facts"])
    assert "steps shown" not in facts


def test_maps_that_are_not_finite_are_named_as_such(tmp_path: Path) -> None:
    run = make_run(steps=1)
    tensors_of(run)[0][...] = float("nan")
    with pytest.raises(ValueError, match="the maps hold values that are not finite"):
        Trace([run]).report(tmp_path / "report.html")


def test_nothing_in_the_page_comes_from_elsewhere() -> None:
    page = report.page([Subject(make_run())])
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"\son\w+=", page.split("<script")[0])


def test_untrusted_text_cannot_leave_its_place() -> None:
    evil = '</script><script>alert(1)</script> <!-- {{script}} & "\u2028'
    run = make_run(["a car"])
    run.info["model"] = evil
    page = report.page([Subject(run, title=evil)], plan=evil)
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<!--" not in page
    data = data_of(page)
    assert data["plan"] == data["subjects"][0]["title"] == evil
    assert ["model", evil] in data["subjects"][0]["facts"]


@pytest.mark.parametrize("keep", [[], ["step"], ["layer"], ["step", "layer"], ["head"]])
def test_any_axes_can_be_missing(keep: Any) -> None:
    run = make_run(keep=keep)
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert len(subject["steps"]) == (3 if "step" in keep else 0)
    assert len(subject["grids"]["heads"]) == (4 if "head" in keep else 0)
    unpacked(subject, 0)


def test_a_prompt_of_embeddings_has_its_positions_for_words() -> None:
    run = make_run()
    run = Run(**{**vars(run), "prompts": (Prompt.anonymous(77),)})
    (subject,) = data_of(report.page([Subject(run)]))["subjects"]
    assert subject["words"] == [f"token {p}" for p in range(1, 7)]


def test_every_image_of_a_run_can_be_chosen_and_one_can_be_asked_for(tmp_path: Path) -> None:
    trace = Trace([make_run(["a red car", "a blue boat"])])
    trace.run.images.extend([Image.new("RGB", (96, 64)), Image.new("RGB", (48, 32))])
    trace.report(tmp_path / "all.html")
    subjects = data_of((tmp_path / "all.html").read_text())["subjects"]
    assert [s["text"] for s in subjects] == ["a red car", "a blue boat"]
    assert [s["size"] for s in subjects] == [[96, 64], [48, 32]]
    trace.report(tmp_path / "one.html", 1)
    (subject,) = data_of((tmp_path / "one.html").read_text())["subjects"]
    assert (subject["text"], subject["size"]) == ("a blue boat", [48, 32])
    single = Trace([make_run(["a red car"])])
    single.report(tmp_path / "mine.html", on=Image.new("RGB", (2048, 1024)))
    data = data_of((tmp_path / "mine.html").read_text())
    (subject,) = data["subjects"]
    assert subject["size"] == [1024, 512]
    assert data["pictures"][subject["picture"]].startswith("data:image/jpeg")


def test_the_page_has_every_measure_of_each_word() -> None:
    trace = Trace([make_run(["a red car"])])
    data = data_of(report.page([Subject(trace.run)]))
    (subject,) = data["subjects"]
    assert data["measures"] == [name.replace("_", " ") for name in MEASURES]
    assert len(subject["measures"]) == len(subject["words"]) == 3
    for word, found in zip(subject["words"], subject["measures"], strict=True):
        wanted = trace.heatmap(word).measure()
        assert list(wanted) == list(MEASURES)
        for one, two in zip(found, wanted.values(), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3)


def test_an_unfinished_run_shows_its_complete_steps() -> None:
    (subject,) = data_of(report.page([Subject(make_run(steps=5, done=2))]))["subjects"]
    assert len(subject["steps"]) == 2
    with pytest.raises(ValueError, match="no step of this run is complete"):
        report.page([Subject(make_run(done=0))])


def test_the_page_of_an_edit_works_without_a_trace(tmp_path: Path) -> None:
    result = SimpleNamespace(
        source=Image.new("RGB", (8, 8)), images=[Image.new("RGB", (8, 8))],
        prompts=["a red car", "a blue car"], plan=None, masks=None, trace=None,
    )  # fmt: skip
    report.write_edit(tmp_path / "edit.html", result)
    data = data_of((tmp_path / "edit.html").read_text())
    assert data["subjects"] == []
    assert [(c["title"], c["text"], c["mask"]) for c in data["cards"]] == [
        ("source", "a red car", None), ("edit 1", "a blue car", None),
    ]  # fmt: skip


def test_the_page_of_an_edit_shows_its_own_seed(tmp_path: Path) -> None:
    texts = ["a red car", "a blue car"]
    trace = Trace([make_run(texts, images=2)])
    mask = torch.zeros(3, 4, 4)  # (steps, height, width)
    mask[-1] = 1
    results = [
        SimpleNamespace(
            source=Image.new("RGB", (8, 8), (n, 0, 0)),
            images=[Image.new("RGB", (8, 8), (0, 0, 200))],
            prompts=texts, plan="plan", masks=[mask], trace=trace, labels=["red to blue"],
            seed=n, of=2,
        )
        for n in range(2)
    ]  # fmt: skip
    report.write_edit(tmp_path / "edit.html", results[1])
    data = data_of((tmp_path / "edit.html").read_text())
    assert [s["title"] for s in data["subjects"]] == ["source", "red to blue"]
    for n, row in enumerate((1, 3)):
        want = daam.token_maps(trace.run, [2], row)[0]
        got = unpacked(data["subjects"][n], 1)[0]
        np.testing.assert_allclose(got, want, atol=float(want.max()) / 255)
    assert data["cards"][1]["mask"] == data["cards"][1]["picture"]  # the last step lets all through
    # cards and subjects show the same two pictures, which stand in the page once
    assert [s["picture"] for s in data["subjects"]] == [c["picture"] for c in data["cards"]]
    assert len(data["pictures"]) == len(set(data["pictures"])) == 2
    assert (tmp_path / "edit.html").read_text().count("data:image/png") == 2
    results[0].source = np.zeros((8, 8, 3))
    with pytest.raises(ValueError, match="output_type='pil'"):
        report.write_edit(tmp_path / "edit.html", results[0])
