"""The command line: what a user types, what they get, and what they are told when it is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderKL, EDMEulerScheduler, UNet2DConditionModel
from PIL import Image

import xattn
from tests import tiny

pytest.importorskip("typer")
pytest.importorskip("rich")

from rich.console import Console
from typer.main import get_command

from xattn.cli import exit_code_of
from xattn.cli.batch import typed_lines
from xattn.cli.commands import app
from xattn.cli.edit import grouped, write_edit
from xattn.cli.options import watched
from xattn.cli.output import Folder, print_json
from xattn.units import size_of

PROMPT = "a red car on a lawn"
FAST = ["--steps", "3", "--seed", "5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny pipeline of random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.sd1().save_pretrained(folder)
    return str(folder)


def picture(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


# -- record


def test_record_writes_image_overlays_trace_and_report(
    xattn_command: Any, model: Any, generator: Any, tmp_path: Path
) -> None:
    code, out, err = xattn_command("record", PROMPT, "--model", model, "--out", "car", *FAST)
    assert (code, err) == (0, "")
    assert "earlier run" not in out
    names = {path.name for path in (tmp_path / "car").iterdir()}
    assert names == {
        "image.png", "grid.png", "report.html", "trace.safetensors",
        "01-a.png", "02-red.png", "03-car.png", "04-on.png", "05-lawn.png",
    }  # fmt: skip
    assert all(name in out for name in names)

    pipe = tiny.sd1()
    plain = pipe(PROMPT, num_inference_steps=3, generator=generator(5)).images[0]
    assert np.array_equal(np.asarray(plain), np.asarray(picture("car/image.png")))
    trace = xattn.load("car/trace.safetensors")
    heat = trace.heatmap("red").resize((512, 512)).array
    shown = np.asarray(trace.heatmap("red").overlay(plain.resize((512, 512)), opacity=1.0))
    assert shown.astype(int).sum(2).ravel()[heat.argmax()] == shown.astype(int).sum(2).max()
    assert picture("car/02-red.png").size == (512, 512)
    assert "<script" in Path("car/report.html").read_text(encoding="utf-8")

    words = ["--word", "lawn", "--steps", "1"]
    _, out, _ = xattn_command("record", PROMPT, "--model", model, "--out", "car", *words)
    assert "left from an earlier run: 01-a.png, 02-red.png, 03-car.png, 04-on.png, 05-lawn" in out
    assert (tmp_path / "car/02-red.png").exists()


def test_probe_shows_the_words_in_a_given_picture(
    xattn_command: Any, model: Any, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16), "red").save("photo.png")
    words = ["probe", "photo.png", PROMPT, "--model", model, "--size", "16", "--level", "0.5"]
    code, out, _ = xattn_command(*words, "--also", "boat", "--presence", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["picture"] == "photo.png, 16x16"
    assert list(told["presence"]) == ["red", "car", "lawn", "boat"]
    assert (told["calibrated"], told["verdict"] in ("match", "partly", "mismatch")) == (False, True)
    assert (tmp_path / "xattn-probe/also-01-boat.png").exists()
    assert told["levels"] == [0.5]
    assert list(told["words"]) == ["a", "red", "car", "on", "lawn"]
    trace = xattn.load(tmp_path / "xattn-probe/trace.safetensors")
    assert trace.timesteps == (500.0,)
    assert all(Path(path).exists() for path in told["files"])
    for wrong, says in (
        (["--level", "1.5"], "between 0 and 1"),
        (["--word", "boat"], "is not in the prompt"),
    ):
        code, _, err = xattn_command(*words[:7], *wrong)
        assert code == 2
        assert says in err


def test_json_is_one_object_on_stdout_and_nothing_else(xattn_command: Any, model: Any) -> None:
    words = ["--word", "red", "--word", "red car", "--animate", "red"]
    code, out, err = xattn_command("record", PROMPT, "--model", model, *FAST, *words, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["prompt"] == PROMPT
    assert (data["seed"], data["steps"], data["device"]) == (5, 3, "cpu")
    assert list(data["words"]) == ["red", "red car"]
    assert set(data["words"]["red"]) >= {"mean", "maximum", "entropy", "focus_area", "centre"}
    assert all(Path(path).is_file() for path in data["files"])
    with Image.open("xattn-record/00-red.gif") as moving:
        assert moving.n_frames == 3  # type: ignore[attr-defined]


def test_refined_maps_are_recorded_shown_and_refused(xattn_command: Any, model: Any) -> None:
    record = ["record", PROMPT, "--model", model, *FAST, "--word", "red", "--json"]
    code, out, err = xattn_command(*record, "--refined", "--out", "fine")
    assert (code, err) == (0, "")
    trace = xattn.load("fine/trace.safetensors")
    said = json.loads(out)["words"]["red"]
    assert said["maximum"] == pytest.approx(trace.heatmap("red", refined=True).maximum, rel=1e-4)
    assert said["maximum"] != pytest.approx(trace.heatmap("red").maximum, rel=1e-3)
    code, out, _ = xattn_command("show", "fine/trace.safetensors", "--refined", "--json")
    assert (code, json.loads(out)["words"]["red"]) == (0, said)
    assert xattn_command(*record, "--out", "coarse")[0] == 0
    assert picture("coarse/01-red.png").tobytes() != picture("fine/01-red.png").tobytes()
    code, out, err = xattn_command("show", "coarse/trace.safetensors", "--refined")
    assert (code, out) == (2, "")
    assert "record with affinity=True" in err


def test_sizes_are_width_by_height(xattn_command: Any, model: Any) -> None:
    code, out, _ = xattn_command(
        "record", PROMPT, "--model", model, *FAST, "--size", "96x64", "--guidance", "1", "--json"
    )
    assert code == 0
    assert picture("xattn-record/image.png").size == (96, 64)
    assert json.loads(out)["latent"] == [32, 48]
    assert size_of("512") == (512, 512)
    assert size_of("768x512") == (512, 768)


def test_words_with_odd_characters_become_files(xattn_command: Any, model: Any) -> None:
    prompt = "a/b ../c <script> \N{CAT FACE}"
    code, out, err = xattn_command("record", prompt, "--model", model, *FAST, "--json")
    assert (code, err) == (0, "")
    assert all(Path(path).parent == Path("xattn-record") for path in json.loads(out)["files"])
    assert "<script> " not in Path("xattn-record/report.html").read_text(encoding="utf-8")


def test_the_animation_shows_the_image_as_it_forms_without_decoding_it(
    xattn_command: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    decode = AutoencoderKL.decode

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        decoded.append(self)
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "decode", spy)
    code, _, err = xattn_command("record", PROMPT, "--model", model, *FAST, "--animate", "red")
    assert (code, err) == (0, "")
    assert len(decoded) == 1  # the image itself
    trace = xattn.load("xattn-record/trace.safetensors")
    trace.animate("red", "again.gif")
    assert Path("again.gif").read_bytes() == Path("xattn-record/00-red.gif").read_bytes()
    trace.run.estimates = None
    trace.animate("red", "final.gif")
    assert Path("final.gif").read_bytes() != Path("again.gif").read_bytes()


def test_an_animation_without_previews_is_drawn_on_the_final_image(
    xattn_command: Any, tmp_path: Path
) -> None:
    scheduler = EDMEulerScheduler(sigma_max=10.0, prediction_type="epsilon")
    pipe = tiny.sd1()
    pipe.register_modules(scheduler=scheduler)
    pipe.save_pretrained(tmp_path / "edm")
    code, _, err = xattn_command("record", PROMPT, "--model", "edm", *FAST, "--animate", "red")
    assert code == 0, err
    assert xattn.load("xattn-record/trace.safetensors").run.estimates is None
    with Image.open("xattn-record/00-red.gif") as moving:
        assert moving.n_frames == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--animate", "blue"], 2, "'blue' is not in the prompt"),
        (["--animate", "car", "--word", "red"], 2, "give --word 'car' too"),
        (["--animate", "red", "--keep", "layer"], 2, "add step to --keep layer"),
    ],
)
def test_what_can_not_be_animated_is_refused_before_sampling(
    xattn_command: Any, model: Any, monkeypatch: pytest.MonkeyPatch, more: Any, code: Any, says: Any
) -> None:
    called = []
    monkeypatch.setattr(UNet2DConditionModel, "forward", lambda *a, **k: called.append(a))
    got, out, err = xattn_command("record", PROMPT, "--model", model, *FAST, *more)
    assert (got, out) == (code, "")
    assert says in err
    assert called == []


def test_a_word_inside_a_kept_phrase_can_be_animated(xattn_command: Any, model: Any) -> None:
    more = ["--word", "red car", "--animate", "car"]
    code, _, err = xattn_command("record", PROMPT, "--model", model, *FAST, *more)
    assert (code, err) == (0, "")
    assert Path("xattn-record/00-car.gif").is_file()


def test_recording_and_report_are_there_when_a_picture_fails(
    xattn_command: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(xattn.HeatMap, "overlay", full)
    code, _, err = xattn_command("record", PROMPT, "--model", model, *FAST)
    assert (code, err) == (1, "xattn: the disk is full\n")
    assert xattn.load("xattn-record/trace.safetensors").prompts == (PROMPT,)
    assert Path("xattn-record/report.html").is_file()


def test_an_edits_recording_is_there_when_its_report_fails(tmp_path: Path) -> None:
    class Unreported:  # an edit whose report can't be written
        def __init__(self, trace: Any, image: Any) -> None:
            self.trace, self.source = trace, image
            self.images: list[Any] = []
            self.labels: list[str] = []

        def sheet(self) -> Any:
            return self.source

        def report(self, path: Any) -> None:
            raise OSError("the disk is full")

    pipe = tiny.sd1()
    with xattn.record(pipe) as trace:
        image = pipe(PROMPT, num_inference_steps=1).images[0]
    with pytest.raises(OSError, match="the disk is full"):
        write_edit(Folder(tmp_path), Unreported(trace, image))
    assert xattn.load(tmp_path / "trace.safetensors").prompts == (PROMPT,)


# -- edit and sweep


def test_edit_draws_a_sibling_for_each_edit(xattn_command: Any, model: Any, generator: Any) -> None:
    code, out, err = xattn_command(
        "edit", PROMPT, "--model", model, *FAST, "--json",
        "--reweight", "red=2.5", "--replace", "red=blue", "--blend", "car", "--blend", "lawn",
        "--refine", f"{PROMPT} at night", "--replace=car=boat", "+", "--reweight", "boat=0",
    )  # fmt: skip
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert [edit["prompt"] for edit in data["edits"]] == [
        PROMPT, "a blue car on a lawn", f"{PROMPT} at night", "a red boat on a lawn",
    ]  # fmt: skip
    assert data["edits"][1]["label"] == "Replace red -> blue, LocalBlend car, lawn"
    expected = xattn.edit(
        tiny.sd1(), PROMPT, xattn.Reweight("red", 2.5),
        num_inference_steps=3, generator=generator(5),
    )  # fmt: skip
    drawn = np.asarray(picture("xattn-edit/edit-01.png")).astype(int)
    assert abs(drawn - np.asarray(expected.images[0])).max() <= 1  # another batch, other rounding
    assert len(xattn.load("xattn-edit/trace.safetensors").run.prompt_of) == 5
    assert Path("xattn-edit/report.html").is_file()
    assert Path("xattn-edit/edits.png").is_file()


def test_a_photograph_is_inverted_and_edited(xattn_command: Any, model: Any) -> None:
    Image.new("RGB", (64, 64), "red").save("photo.png")
    code, out, err = xattn_command(
        "invert", "photo.png", PROMPT, "--model", model, "--steps", "2", "--json"
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["calls"] == 2
    code, out, err = xattn_command(
        "edit", PROMPT, "--image", "xattn-invert/inversion.safetensors", "--model", model,
        "--replace", "red=blue", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)["edits"][0]["prompt"] == "a blue car on a lawn"
    assert Path("xattn-edit/source.png").is_file()


def test_a_sweep_takes_a_photograph_too(xattn_command: Any, model: Any) -> None:
    Image.new("RGB", (64, 64), "red").save("photo.png")
    code, out, err = xattn_command(
        "sweep", PROMPT, "red", "--image", "photo.png", "--model", model, "--steps", "2",
        "--weights", "0,2", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert [edit["label"] for edit in json.loads(out)["edits"]] == ["red x 0", "red x 2"]
    inverted = xattn.edit(
        tiny.sd1(), PROMPT, xattn.Reweight("red", 0.0), xattn.Reweight("red", 2.0),
        image="photo.png", num_inference_steps=2, trace=False,
    )  # fmt: skip
    drawn = np.asarray(picture("xattn-sweep/source.png"))
    np.testing.assert_array_equal(drawn, np.asarray(inverted.source))


def test_sweep_takes_negative_weights(xattn_command: Any, model: Any) -> None:
    code, out, err = xattn_command(
        "sweep", PROMPT, "red", "--model", model, *FAST, "--weights", "-1,0,1.5", "--json"
    )
    assert (code, err) == (0, "")
    labels = [edit["label"] for edit in json.loads(out)["edits"]]
    assert labels == ["red x -1", "red x 0", "red x 1.5"]


def test_edits_keep_their_order_and_a_plus_joins() -> None:
    words = ["p", "--reweight", "a=2", "+", "--replace=a=b", "--replace", "c=d", "--blend", "d"]
    groups, rest = grouped(words)
    assert groups == [["reweight", "replace"], ["replace", "blend"]]
    assert rest == [word for word in words if word != "+"]
    assert grouped(["--refine", "+"]) == ([["refine"]], ["--refine", "+"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --replace, --refine or --reweight"),
        (["--blend", "car"], "there is none"),
        (["+", "--replace", "a=b"], "between two edits"),
        (["--replace", "red=blue", "+"], "between two edits"),
        (["--replace", "red"], "write it as red=blue"),
        (["--replace", "red=blue", "--threshold", "0.5"], "--threshold is that of --blend"),
        (["--reweight", "red=much"], "'much' is not a number"),
        (["--reweight", "red=nan"], "--reweight 'red=nan': 'nan' is out of range"),
        (["--reweight", "red=1e30"], "give a number from -1000 to 1000"),
        (["--reweight", "red=-inf"], "out of range"),
        (["--refine", " "], "Refine takes the complete new prompt"),
        (["--replace", "red=blue", "--self-steps", "2"], "is not a share of the run"),
    ],
)
def test_edits_that_make_no_sense_are_wrong_calls(
    xattn_command: Any, words: Any, says: Any
) -> None:
    code, out, err = xattn_command("edit", PROMPT, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


# -- show


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    pipe = tiny.sd1()
    pipe.set_progress_bar_config(disable=True)
    with xattn.record(pipe) as trace:
        pipe([PROMPT, "a blue boat"], num_inference_steps=3)
    path = tmp_path_factory.mktemp("trace") / "run.safetensors"
    trace.save(path)
    return str(path)


def test_show_makes_pictures_and_a_report(
    xattn_command: Any, trace_file: Any, tmp_path: Path
) -> None:
    code, out, err = xattn_command("show", trace_file, "--image", "1", "--animate", "boat")
    assert (code, err) == (0, "")
    names = {path.name for path in (tmp_path / "xattn-show").iterdir()}
    assert names == {
        "image.png", "01-a.png", "02-blue.png", "03-boat.png", "grid.png", "entropy.png",
        "00-boat.gif", "report.html",
    }  # fmt: skip
    assert "where 'boat' acts" in out


def test_show_draws_on_a_given_picture(xattn_command: Any, trace_file: Any) -> None:
    Image.new("RGB", (40, 24), (0, 90, 0)).save("canvas.png")
    more = ["--word", "boat", "--image", "1", "--on", "canvas.png"]
    assert xattn_command("show", trace_file, *more)[0] == 0
    assert picture("xattn-show/01-boat.png").size == (512, 307)
    Path("text.png").write_text("no picture")
    code, out, err = xattn_command("show", trace_file, "--on", "text.png")
    assert (code, out) == (2, "")
    assert "--on text.png: the file is not a picture" in err


def test_the_layers_to_show_reach_entropy_and_animation(
    xattn_command: Any, trace_file: Any
) -> None:
    chosen = ["--word", "red", "--animate", "red", "--layers", "up_blocks.*"]
    assert xattn_command("show", trace_file, "--out", "some", *chosen)[0] == 0
    trace = xattn.load(trace_file)
    trace.evolution("red", layers="up_blocks.*").plot().save("entropy.png")
    trace.animate("red", "red.gif", layers="up_blocks.*")
    assert Path("some/entropy.png").read_bytes() == Path("entropy.png").read_bytes()
    assert Path("some/00-red.gif").read_bytes() == Path("red.gif").read_bytes()
    assert xattn_command("show", trace_file, "--out", "all", *chosen[:-2])[0] == 0
    assert Path("some/entropy.png").read_bytes() != Path("all/entropy.png").read_bytes()
    assert Path("some/00-red.gif").read_bytes() != Path("all/00-red.gif").read_bytes()


def test_show_tells_how_decided_layers_are(
    xattn_command: Any, trace_file: Any, tmp_path: Path
) -> None:
    code, out, _ = xattn_command("show", trace_file, "--entropy", "--json")
    assert code == 0
    rows = json.loads(out)["entropy"]
    assert [row["entropy"] for row in rows] == sorted(row["entropy"] for row in rows)
    assert not (tmp_path / "xattn-show").exists()
    code, out, _ = xattn_command("show", trace_file, "--entropy")
    assert f"{rows[0]['entropy']:.3f}" in out


def test_show_gives_figures_as_json_and_writes_nothing(
    xattn_command: Any, trace_file: Any, tmp_path: Path
) -> None:
    code, out, err = xattn_command(
        "show", trace_file, "--json", "--word", "red", "--steps", "0:2", "--layers", "up_blocks.*"
    )
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    data = json.loads(out)
    heat = xattn.load(trace_file).heatmap("red", steps=slice(0, 2), layers="up_blocks.*")
    assert data["words"]["red"]["maximum"] == pytest.approx(heat.maximum, abs=1e-5)
    assert data["files"] == {}


# -- what goes wrong


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["record"], 2, "Missing argument"),
        (["record", PROMPT, "--steps", "0"], 2, "--steps"),
        (["record", PROMPT, "--size", "big"], 2, "'big' is not a size"),
        (["record", PROMPT, "--nonsense"], 2, "--nonsense"),
        (["nonsense"], 2, "nonsense"),
        (["sweep", PROMPT, "red", "--weights", "some"], 2, "'some' is not a number"),
        (["sweep", PROMPT, "red", "--weights", "1,inf"], 2, "'inf' is out of range"),
        (["sweep", PROMPT, "red", "--weights", "0,1e30"], 2, "'1e30' is out of range"),
        (["record", PROMPT, "--guidance", "nan"], 2, "'--guidance': 'nan' is out of range"),
        (["record", PROMPT, "--guidance", "inf"], 2, "'inf' is out of range"),
        (["edit", PROMPT, "--guidance", "1e30"], 2, "a number from -1000 to 1000"),
        (["record", PROMPT, "--guidance", "much"], 2, "'much' is not a number"),
        (["record", PROMPT, "--seed", str(2**63)], 2, "'--seed'"),
        (["record", "a \ud800 car"], 2, "character 2 is a lone surrogate"),
        (["record", PROMPT, "--negative", "\udcff"], 2, "character 0 is a lone surrogate"),
        (["record", PROMPT, "--device", "abacus"], 2, "'abacus' is not a device"),
        (["batch", "text.safetensors", "--out", "o", "--device", "abacus"], 2, "'abacus' is no"),
        (["record", PROMPT, "--offload", "model", "--device", "cpu"], 2, "needs an accelerator"),
        (["record", PROMPT, "--model", "."], 2, "no model_index.json"),
        (["show", "nothing.safetensors"], 2, "there is no recording at nothing.safetensors"),
        (["batch", "nothing.jsonl", "--out", "o"], 2, "'nothing.jsonl' does not exist"),
        (["show", "text.safetensors"], 1, "text.safetensors is damaged, or is not a recording"),
        (["record", PROMPT, "--out", "text.safetensors"], 2, "is a file; give a folder"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    xattn_command: Any, tmp_path: Path, words: Any, code: Any, says: Any
) -> None:
    (tmp_path / "text.safetensors").write_text("not a recording")
    got, out, err = xattn_command(*words)
    assert (got, out) == (code, "")
    assert says in err
    assert err.startswith("xattn: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["record", PROMPT, "--word", "blue"], "its words are: a, red, car, on, lawn"),
        (["record", PROMPT, "--size", "100"], "multiples of 8"),
        (["record", PROMPT, "--layers", "nowhere"], "nowhere"),
        (["record", PROMPT, "--keep", "colour"], "expected any of step, layer, head"),
        (["record", PROMPT, "--animate", "blue"], "'blue' is not in the prompt"),
        (["edit", PROMPT, "--replace", "blue=green"], "'blue' is not in the prompt"),
        (["edit", PROMPT, "--replace", "red=\ud800"], "character 2 is a lone surrogate"),
        (["edit", PROMPT, "--refine", "a \ud800"], "character 2 is a lone surrogate"),
        (["sweep", PROMPT, "blue"], "'blue' is not in the prompt"),
    ],
)
def test_what_the_model_can_not_do_is_a_wrong_call(
    xattn_command: Any, model: Any, words: Any, says: Any
) -> None:
    code, out, err = xattn_command(*words, "--model", model, "--steps", "2")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_call_without_a_command_shows_the_commands_and_says_what_is_missing(
    xattn_command: Any,
) -> None:
    code, out, err = xattn_command()
    assert (code, err) == (2, "xattn: give a command (see: xattn --help)\n")
    assert "record" in out


def test_a_value_error_before_the_first_step_is_a_wrong_call_and_later_a_failure() -> None:
    def fail_after(steps: Any) -> None:
        with watched(Console(quiet=True), "") as watch:
            for step in range(steps):
                watch(None, step, None, {})
            raise ValueError("odd")

    for steps, code in ((0, 2), (1, 1)):
        with pytest.raises(ValueError, match="odd") as caught:
            fail_after(steps)
        assert exit_code_of(caught.value) == code


def test_facts_that_json_has_no_form_for_are_printed_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json({"scale": float("nan"), "word": "\N{CAT FACE}", "heads": np.float32(2)})
    printed = capsys.readouterr().out
    assert json.loads(printed, parse_constant=pytest.fail) == {
        "scale": "nan", "word": "\N{CAT FACE}", "heads": 2.0,
    }  # fmt: skip


def test_debug_shows_where_an_error_comes_from(xattn_command: Any) -> None:
    code, _, err = xattn_command("show", "nothing.safetensors", "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("xattn: there is no recording")


@pytest.mark.parametrize("command", ["demo", "record", "edit", "sweep", "show", "app", "batch"])
def test_help_has_an_example_that_the_command_takes(xattn_command: Any, command: Any) -> None:
    code, out, _ = xattn_command(command, "--help")
    assert code == 0
    told = re.split("Examples?: ", " ".join(out.split()))[1]
    examples = [part for part in told.split(", ") if part.startswith("xattn ")]
    assert examples
    Path("prompts.jsonl").touch()  # what an example reads
    for example in examples:
        _, name, *words = shlex.split(example)
        assert name == command
        group: Any = get_command(app)
        with group.commands[name].make_context(name, words) as parsed:
            assert not parsed.args  # read, and not run


# -- the bundled model, and the real entry point


def test_the_demo_shows_everything_once(xattn_command: Any, toyland: Any, tmp_path: Path) -> None:
    code, out, err = xattn_command("demo", "--steps", "4")
    assert (code, err) == (0, "")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    for name in ("image.png", "words.png", "car.gif", "report.html", "edit/edits.png"):
        assert f"xattn-demo/{name}" in names
        assert f"xattn-demo/{name}" in out


def entry_point() -> list[str]:
    installed = Path(sys.executable).with_name("xattn")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "xattn.cli"]


def test_a_batch_reads_its_lines_from_another_program(
    xattn_command: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = b'{"prompt": "a red car", "steps": 2}\n{"prompt": ""\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    code, out, _ = xattn_command("batch", "-", "--model", model, "--out", "o", "--json")
    told = json.loads(out)
    assert (code, told["drawn"]) == (1, 1)
    assert told["failures"][0]["line"] == 2


def test_standard_input_is_not_shared_by_processes() -> None:
    with pytest.raises(ValueError, match="by 2 processes: name a file"):
        typed_lines(2)


def shell(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [*entry_point(), *words] if code is None else [sys.executable, "-c", code, *words]
    plain = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=plain)


def test_the_installed_command_runs() -> None:
    done = shell("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"xattn {xattn.__version__}")


def test_the_installed_command_fails_without_a_traceback(tmp_path: Path) -> None:
    done = shell("show", str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == f"xattn: there is no recording at {tmp_path / 'none'}"


INTERRUPTED = """
import xattn.cli, xattn.cli.commands as commands
@commands.app.command()
def wait() -> None:
    raise KeyboardInterrupt
xattn.cli.main(["wait"])
"""


def test_an_interrupted_command_says_so_and_exits_with_130() -> None:
    done = shell(code=INTERRUPTED)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "xattn: interrupted; what was written before stays\n"


def test_completion_is_written_for_a_shell() -> None:
    done = shell(code="import os; os.environ['_XATTN_COMPLETE'] = 'complete_bash'; "
                      "os.environ['COMP_WORDS'] = 'xattn rec'; os.environ['COMP_CWORD'] = '1'; "
                      "from xattn.cli import main; main([])")  # fmt: skip
    assert done.stdout.split() == ["record"]


def test_without_the_extra_the_command_says_what_to_install() -> None:
    done = shell(code="import sys; sys.modules['typer'] = None; import xattn.cli as c; c.main([])")
    assert done.returncode == 1
    assert done.stderr.strip().endswith('run: pip install "xattn[cli]"')
    assert done.stderr.count("\n") == 1


def test_help_needs_no_model_and_no_torch() -> None:
    code = (
        "import sys, xattn.cli as c\n"
        "try: c.main(['record', '--help'])\n"
        "finally: print(sorted({'torch', 'diffusers', 'gradio'} & set(sys.modules)))"
    )
    done = shell(code=code)
    assert done.stdout.splitlines()[-1] == "[]"
