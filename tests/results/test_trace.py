"""Every question that a trace answers, and the errors where it can't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import LAYERS, make_run, tensors_of
from xattn.maps import daam
from xattn.results.trace import Trace, load
from xattn.views import colours, sheets


@pytest.fixture
def trace() -> Trace:
    return Trace([make_run(["a red car on a lawn"], steps=4, images=2)])


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (96, 64), (60, 90, 60))


def test_an_empty_trace_says_what_to_do() -> None:
    trace = Trace(runs=[])
    assert len(trace) == 0
    assert trace
    assert trace.nbytes == 0
    assert repr(trace) == "Trace(nothing recorded yet)"
    assert "nothing recorded yet" in trace._repr_html_()
    for ask in (
        lambda: trace.heatmap("red"),
        lambda: trace.words,
        lambda: trace.grid(),
        lambda: trace.report("red.html"),
    ):
        with pytest.raises(ValueError, match="call the pipeline inside the with block"):
            ask()


def test_questions_go_to_the_latest_run() -> None:
    first, second = make_run(["a red car"]), make_run(["a blue boat"], seed=1)
    trace = Trace([first])
    trace.runs.append(second)
    assert trace.words == ("a", "blue", "boat")
    assert trace.prompts == ("a blue boat",)
    assert len(trace) == 2
    assert trace[0].words == ("a", "red", "car")
    assert trace[-1].words == trace.words
    assert [t.prompts for t in trace] == [("a red car",), ("a blue boat",)]
    assert trace.nbytes == first.nbytes + second.nbytes
    with pytest.raises(IndexError):
        trace[2]


def test_a_heat_map_is_the_mean_over_the_word_s_tokens(trace: Any) -> None:
    run = trace.run
    heat = trace.heatmap("red car", image=1, layers="daam", steps=[0, -1], heads=0)
    tokens = daam.token_maps(run, [2, 3], 1, layers="daam", steps=[0, -1], heads=0)
    np.testing.assert_array_equal(heat, tokens.mean(0))
    assert heat.word == "red car"
    assert heat.meta == {
        "prompt": "a red car on a lawn", "image": 1, "positions": [2, 3], "steps": [0, 3],
    }  # fmt: skip
    second = trace.heatmap("a", occurrence=1)
    np.testing.assert_array_equal(second, daam.token_maps(run, [5])[0])
    np.testing.assert_array_equal(trace.heatmap(5), second)


def test_maps_along_the_steps_and_the_layers(trace: Any) -> None:
    steps = trace.steps("red", 1)
    assert len(steps) == 4
    for n, heat in enumerate(steps):
        np.testing.assert_allclose(heat, trace.heatmap("red", 1, steps=n), atol=1e-7)
        assert heat.meta["steps"] == [n]
    layers = trace.layers("red", steps=[1, 2])
    assert list(layers) == [layer.name for layer in LAYERS]
    for name, heat in layers.items():
        alone = trace.heatmap("red", layers=name, steps=[1, 2])
        np.testing.assert_allclose(heat, alone, atol=1e-7)


def test_evolution_ranks_layers_and_steps_by_their_focus() -> None:
    run = make_run(steps=3)
    spot = torch.zeros_like(tensors_of(run)[1][1, 0, :, 1])
    spot[:, 2, 3] = 1
    tensors_of(run)[1][1, 0, :, 1] = spot  # the word "red", in layer 1 at step 1
    found = Trace([run]).evolution("red")
    assert found.entropy.shape == (4, 3)
    assert found.entropy[1, 1] == 0
    assert found.names == tuple(layer.name for layer in LAYERS)
    assert found.timesteps == (1000, 990, 980)
    assert sorted(found.focused_layers) == sorted(found.names)
    means = dict(zip(found.names, found.entropy.mean(1), strict=True))
    assert [means[n] for n in found.focused_layers] == sorted(means.values())
    assert found.focused_steps[0] == 1
    assert found.plot().size == (900, 480)
    assert "4 layers x 3 steps" in repr(found)
    assert found._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="'step' in keep="):
        Trace([make_run(keep=["layer"])]).evolution("red")


def test_the_steps_of_a_probe_are_called_levels() -> None:
    run = make_run(steps=3)
    probed = replace(run, info={**run.info, "levels": [0.9, 0.5, 0.25]})
    assert (run.axis, run.step_name(1), run.levels) == ("step", "step 1", ())
    assert (probed.axis, probed.step_name(2)) == ("level", "level 0.25")
    one, two = (Trace([each]).evolution("red") for each in (run, probed))
    assert (one.levels, two.levels) == ((), (0.9, 0.5, 0.25))
    assert "4 layers x 3 levels" in repr(two)
    assert np.asarray(one.plot()).tobytes() != np.asarray(two.plot()).tobytes()


def test_evolution_is_asked_of_an_image_and_of_some_layers(trace: Any, picture: Any) -> None:
    images = [Image.new("RGB", (96, 64), (n, 0, 0)) for n in range(2)]
    trace.run.images = images
    second = trace.evolution("red", 1, layers="up_blocks.*")
    assert second.names == (LAYERS[3].name,)
    np.testing.assert_array_equal(second.entropy[0], trace.evolution("red", 1).entropy[3])
    assert not np.array_equal(second.entropy[0], trace.evolution("red").entropy[3])


def test_saved_images_are_those_of_the_run_or_an_error(
    trace: Any, picture: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    for wrong, message in (
        (picture, "has 1 pictures; this run has 2"),
        ([picture] * 3, "has 3 pictures"),
        ([picture, np.zeros((64, 96, 3))], "must be PIL images, got Image, ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            trace.save(path, wrong)
    assert not path.exists()
    trace.save(path, [picture, picture])
    assert [image.size for image in load(path).run.images] == [(96, 64)] * 2


def test_only_the_words_that_were_kept_can_be_asked_for() -> None:
    trace = Trace([make_run(["a red car on a lawn"], words=[2, 3])])
    assert trace.words == ("red", "car")
    with pytest.raises(ValueError, match=r"'lawn' was not recorded; .* kept are: red, car"):
        trace.heatmap("lawn")
    with pytest.raises(ValueError, match=r"'blue'.*red"):
        trace.heatmap("blue")


def test_a_run_that_broke_off_answers_for_its_complete_steps() -> None:
    trace = Trace([make_run(steps=5, done=2)])
    assert len(trace.steps("red")) == 2
    assert "2 of 5 steps" in repr(trace)
    with pytest.raises(ValueError, match="no step of this run is complete"):
        Trace([make_run(done=0)]).heatmap("red")
    assert "0 of 3 steps" in Trace([make_run(done=0)])._repr_html_()


def test_images_are_chosen_by_index(picture: Any) -> None:
    own = [Image.new("RGB", (96, 64), (n, 0, 0)) for n in (10, 20)]
    trace = Trace([make_run(images=2)])
    assert trace.heatmap("red").picture is None
    trace.run.images.extend(own)
    assert trace.heatmap("red").picture is own[0]
    assert trace.heatmap("red", 1).picture is own[1]
    assert trace.heatmap("red", image=-1).meta["image"] == 1
    with pytest.raises(ValueError, match="image: 2 is out of range, there are 2"):
        trace.heatmap("red", 2)


def test_a_picture_as_image_is_told_where_it_belongs(
    trace: Any, picture: Any, tmp_path: Path
) -> None:
    path = tmp_path / "never.gif"
    for ask in (
        lambda: trace.heatmap("red", picture),
        lambda: trace.steps("red", picture),
        lambda: trace.layers("red", picture),
        lambda: trace.evolution("red", picture),
        lambda: trace.grid(["red"], picture),
        lambda: trace.report(path, picture),
        lambda: trace.animate("red", path, picture),
    ):
        with pytest.raises(ValueError, match=r"index of an image, 0 to 1, got a picture; .* on="):
            ask()
    with pytest.raises(ValueError, match="index of an image, 0 to 1, got 'red'"):
        trace.heatmap("red", "red")
    for draw in (
        lambda: trace.grid(on=1),
        lambda: trace.report(path, 0, on="red"),
        lambda: trace.animate("red", path, on=np.zeros((3, 3))),
    ):
        with pytest.raises(ValueError, match="on= must be a picture to draw on"):
            draw()
    assert not path.exists()


def test_a_report_takes_a_picture_for_each_image(trace: Any, picture: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on= has 1 pictures for 2 images"):
        trace.report(tmp_path / "report.html", on=picture)
    trace.report(tmp_path / "report.html", on=[picture, picture])
    trace.report(tmp_path / "second.html", 1, on=picture)
    assert (tmp_path / "second.html").stat().st_size < (tmp_path / "report.html").stat().st_size


def test_the_grid_has_a_labelled_cell_for_each_word_and_step(
    trace: Any, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    table = sheets.table

    def spy(cells: Any, rows: Any, columns: Any, **options: Any) -> Any:
        seen.update(cells=cells, rows=rows, columns=columns, **options)
        return table(cells, rows, columns, **options)

    monkeypatch.setattr(sheets, "table", spy)
    sheet = trace.grid(["red", "car on"], on=picture, steps=[0, -1])
    assert seen["rows"] == ["red", "car on"]
    assert seen["columns"] == ["all steps", "step 0", "step 3"]
    assert [len(row) for row in seen["cells"]] == [3, 3]
    assert sheet.width > 3 * 192
    top = max(float(trace.heatmap("red", steps=s).array.max()) for s in (0, 3))
    wanted = colours.overlay(trace.heatmap("red", steps=0), picture, top=top)
    assert np.array_equal(np.asarray(seen["cells"][0][1]), np.asarray(wanted))
    whole = trace.heatmap("red").maximum
    assert seen["notes"][0] == [f"0 to {whole:.3g}", f"0 to {top:.3g}", f"0 to {top:.3g}"]

    trace.grid()
    assert seen["rows"] == list(trace.words)
    assert seen["columns"] == ["all steps", "step 0", "step 1", "step 2", "step 3"]
    Trace([make_run(keep=["layer"])]).grid(["red"])
    assert seen["columns"] == ["all steps"]
    probed = replace(make_run(), info={"levels": [0.9, 0.5, 0.1]})
    Trace([probed]).grid(["red"], steps=[0, 2])
    assert seen["columns"] == ["all levels", "level 0.9", "level 0.1"]


def test_a_grid_of_layers_has_the_plain_picture_first(
    trace: Any, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    table = sheets.table
    monkeypatch.setattr(
        sheets, "table",
        lambda c, r, k, **o: seen.update(cells=c, columns=k, **o) or table(c, r, k, **o),
    )  # fmt: skip
    sheet = trace.grid(["red"], on=picture, layers="all")
    layers = trace.layers("red")
    assert seen["columns"] == ["picture", "all of them", *sheets.shortened(list(layers))]
    row = seen["cells"][0]
    assert np.array_equal(np.asarray(row[0]), np.asarray(picture))
    for cell, heat in zip(row[2:], layers.values(), strict=True):
        assert np.array_equal(np.asarray(cell), np.asarray(heat.overlay(picture)))
    most = [trace.heatmap("red", layers="all"), *layers.values()]
    assert seen["notes"][0] == ["", *(f"0 to {heat.maximum:.3g}" for heat in most)]
    assert trace.grid(["red"], layers="all", colorbar=True).width > sheet.width
    trace.grid(["red"], plain=True, steps=[1])
    assert seen["columns"] == ["picture", "all steps", "step 1"]


def test_the_matrix_needs_the_heads_and_says_what_each_is_scaled_to(
    trace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    table = sheets.table
    monkeypatch.setattr(sheets, "table", lambda *a, **o: seen.update(o) or table(*a, **o))
    assert trace.matrix("red").width > 2 * 96
    heads = [trace.layers("red", heads=h) for h in range(2)]
    names = [layer.name for layer in trace.run.layers]
    native = [n for n, layer in enumerate(trace.run.layers) if layer.grid == trace.run.latent]
    for n in native:  # elsewhere the grids differ
        assert seen["notes"][n] == [f"0 to {heat[names[n]].maximum:.3g}" for heat in heads]
    assert len(native) == 2
    with pytest.raises(ValueError, match="'head' in keep="):
        Trace([make_run(keep=["step"])]).matrix("red")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "apng"])
def test_an_animation_has_a_frame_for_each_step(
    trace: Any, picture: Any, tmp_path: Path, suffix: Any
) -> None:
    path = tmp_path / f"red.{suffix}"
    trace.animate("red", path, on=picture)
    with Image.open(path) as moving:
        assert moving.n_frames == 4  # type: ignore[attr-defined]


def test_saving_and_loading_keeps_every_answer(trace: Any, picture: Any, tmp_path: Path) -> None:
    trace.runs.insert(0, make_run(["a blue boat"]))
    path = tmp_path / "run.safetensors"
    trace.save(path, images=[picture, picture])
    loaded = load(path)
    assert len(loaded) == 2
    assert repr(loaded) == repr(trace)
    np.testing.assert_array_equal(loaded.heatmap("red", 1), trace.heatmap("red", 1))
    assert np.array_equal(np.asarray(loaded.heatmap("red").picture), np.asarray(picture))
    assert not trace.run.images


def test_a_notebook_shows_the_words_as_text() -> None:
    trace = Trace([make_run(["a <script>alert(1)</script> car"])])
    page = trace._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("data:image/png;base64,") == len(trace.words)
