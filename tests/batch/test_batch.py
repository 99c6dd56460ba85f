"""Prompt sets: every sound item is drawn once and whole, whatever happens around it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.processes import (
    ONE_THREAD,
    SECONDS,
    code_of,
    draw,
    fail_alone,
    leave,
    refused,
    start,
    together,
    typed,
)
from tests.runs import make_run
from xattn import batch
from xattn.batch.folder import Writer
from xattn.batch.items import Item, read_items
from xattn.batch.lines import ItemError
from xattn.maps.measures import NUMBERS
from xattn.records import format as file_format

SMALL = [16, 16]


def items(count: int, **more: Any) -> list[dict[str, Any]]:
    colours, things = ["red", "blue", "green"], ["car", "boat", "cat", "dog"]
    return [
        {"prompt": f"a {colours[i % 3]} {things[i % 4]}", "size": SMALL, "steps": 2, **more}
        for i in range(count)
    ]


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same rounding in this process and in others."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- a batch as it should be ---------------------------------------------------------------------


def test_a_batch_is_the_pipelines_own_images_and_recordings(pipe: Any, tmp_path: Path) -> None:
    report = batch.run(pipe, items(3), tmp_path / "runs", batch_size=3, keep=("step", "layer"))
    assert report.ok
    assert str(report) == "3 items drawn"
    prompts = [item["prompt"] for item in items(3)]
    with xattn.record(pipe, keep=("step", "layer")) as trace:
        images = pipe(
            prompts, height=16, width=16, num_inference_steps=2,
            generator=[torch.Generator().manual_seed(i) for i in range(3)],
        ).images  # fmt: skip
    runs = xattn.open_runs(tmp_path / "runs")
    assert len(runs) == 3
    for i, stored in enumerate(runs):
        assert (stored.prompt, stored.seed, stored.line) == (prompts[i], i, i + 1)
        np.testing.assert_array_equal(np.asarray(stored.image), np.asarray(images[i]))
        word = prompts[i].split()[1]
        np.testing.assert_array_equal(stored.trace.heatmap(word), trace.heatmap(word, image=i))
        assert stored.trace.run.images[0].size == (16, 16)


def test_a_line_with_a_picture_is_probed(pipe: Any, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    (tmp_path / "bad.png").write_text("no picture")
    lines: list[dict[str, Any]] = [
        {"prompt": "a red car", "image": str(tmp_path / "red.png"), "seed": 3},
        {"prompt": "a red car", "image": str(tmp_path / "bad.png")},
        {"prompt": "a red car", "image": str(tmp_path / "red.png"), "steps": 3},
    ]
    report = batch.run(pipe, [{**line, "size": SMALL} for line in lines], tmp_path / "runs")
    assert report.drawn == 1
    bad, drawn = (failure.message for failure in report.failures)
    assert "can't be read as a picture" in bad
    assert drawn == "steps is of no use with image and no edits: leave it out"
    (stored,) = xattn.open_runs(tmp_path / "runs")
    trace = xattn.probe(
        pipe, tmp_path / "red.png", "a red car", seed=3, size=(16, 16), keep="layer"
    )
    np.testing.assert_array_equal(stored.trace.heatmap("car"), trace.heatmap("car"))
    assert stored.image is not None
    assert stored.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_line_with_a_picture_and_edits_is_a_photograph(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.linear_gradient("L").convert("RGB").resize((32, 16)).save(path)
    line = {
        "prompt": "a red car", "image": str(path), "size": SMALL, "steps": 2, "seed": 3,
        "guidance_scale": 3.0, "edits": [[{"replace": {"red": "blue"}}, {"blend": "car"}]],
    }  # fmt: skip
    lines = [line, {**line, "edits": [{"replace": {"green": "blue"}}]}]
    report = batch.run(pipe, lines, tmp_path / "runs")
    assert report.drawn == 1
    assert "'green' is not in the prompt" in report.failures[0].message
    (stored,) = xattn.open_runs(tmp_path / "runs")
    alone = xattn.edit(
        pipe, "a red car", [xattn.Replace("red", "blue"), xattn.LocalBlend("car")], image=path,
        size=(16, 16), num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    for one, other in zip(stored.images, [alone.source, *alone.images], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert stored.trace.heatmap("blue", image=1).maximum > 0


def test_items_without_a_picture_keep_the_digest_they_had() -> None:
    """A folder from before items had pictures can be resumed."""
    item = Item("a red car", seed=1)
    said = repr(item)[: repr(item).index(", image=None")] + ")"
    assert item.digest == hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
    assert item.digest != Item("a red car", seed=1, image="a.png").digest


def test_the_index_says_what_the_maps_say(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(4), tmp_path, batch_size=2)
    runs = xattn.open_runs(tmp_path)
    for stored in runs:
        assert stored.words == tuple(stored.prompt.split())
        for row in stored.rows:
            heat = stored.trace.heatmap(row["word"])
            assert row["focus"] == pytest.approx(1 - heat.focus_area)
            assert row["entropy"] == pytest.approx(heat.entropy)
            assert row["centre"] == pytest.approx(list(heat.centre))
            assert row == row | {k: v for k, v in heat.measure().items() if k in NUMBERS}
            peak = [int(share * 8) for share in row["peak"]]
            assert heat.array[peak[0], peak[1]] == heat.maximum == pytest.approx(row["maximum"])
    lines = (tmp_path / "index.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(runs.rows)


def test_a_damaged_or_missing_picture_is_a_file_error(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(2), tmp_path)
    (tmp_path / "images/000001.png").write_bytes(b"no picture")
    (tmp_path / "images/000002.png").unlink()
    for run in xattn.open_runs(tmp_path):
        with pytest.raises(file_format.FileError, match=rf"{run.name}\.png is damaged or missing"):
            _ = run.trace
        with pytest.raises(file_format.FileError, match=rf"{run.name}\.png is damaged or missing"):
            _ = run.image


@pytest.mark.parametrize("length", [30, -40], ids=["header", "pixels"])
def test_a_picture_cut_short_is_a_file_error(pipe: Any, tmp_path: Path, length: int) -> None:
    batch.run(pipe, items(1), tmp_path)
    path = tmp_path / "images/000001.png"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(file_format.FileError, match=r"000001\.png is damaged or missing"):
        _ = xattn.open_runs(tmp_path)[0].trace


def test_missing_maps_are_a_file_error(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(1), tmp_path)
    (shard,) = (tmp_path / "maps").iterdir()
    shard.unlink()
    with pytest.raises(file_format.FileError, match=shard.name):
        _ = xattn.open_runs(tmp_path)[0].trace


def test_items_of_other_settings_are_drawn_apart(pipe: Any, tmp_path: Path) -> None:
    mixed = [
        {"prompt": "a red car", "size": SMALL, "steps": 2, "seed": 7},
        {"prompt": "a blue boat", "size": [16, 32], "steps": 1},
        {"prompt": "two cats", "size": SMALL, "steps": 2, "negative_prompt": "red",
         "words": ["two cats"], "name": "pets/two"},
        {"prompt": "", "size": SMALL, "steps": 2, "guidance_scale": 1},
        {"prompt": "a red car", "size": SMALL, "steps": 2, "edits": [
            {"replace": {"red": "blue"}, "cross_steps": [0.0, 1.0]},
            [{"reweight": {"car": 2}}, {"blend": "car", "threshold": 0.5}],
        ]},
        {"prompt": "a red car", "size": SMALL, "steps": 2, "seed": 7},
    ]  # fmt: skip
    report = batch.run(pipe, mixed, tmp_path, batch_size=2)
    assert report.failures == ()
    runs = xattn.open_runs(tmp_path)
    assert [run.trace.run.done for run in runs] == [2, 1, 2, 2, 2, 2]
    assert runs[1].image is not None
    assert runs[1].image.size == (32, 16)
    assert runs["pets/two"].words == ("two cats",)
    assert (tmp_path / "images/pets/two.png").exists()
    assert runs[3].words == ()
    assert (tmp_path / "images/000004.png").exists()
    edited = runs[4]
    assert next(row["edit"] for row in edited.rows if row["word"] == "a") is None
    assert {row["prompt"] for row in edited.rows} == {"a red car", "a blue car"}
    assert len(edited.images) == 3
    assert edited.trace.prompts == ("a red car", "a blue car", "a red car")
    assert edited.trace.heatmap("blue", image=1).maximum > 0
    # equal items, drawn together: equal to the last bit
    assert runs[0].image is not None
    np.testing.assert_array_equal(np.asarray(runs[0].image), np.asarray(runs[5].image))


def test_images_can_be_webp_or_left_out(pipe: Any, tmp_path: Path) -> None:
    for kind in ("png", "webp", None):
        batch.run(pipe, items(1), tmp_path / str(kind), images=kind)
    png, webp = (xattn.open_runs(tmp_path / kind)[0].image for kind in ("png", "webp"))
    np.testing.assert_array_equal(np.asarray(png), np.asarray(webp))
    without = xattn.open_runs(tmp_path / "None")[0]
    assert without.image is None
    assert without.trace.heatmap("car").overlay().size > (0, 0)


def test_runs_are_filtered_by_the_limits_of_any_measure(tmp_path: Path) -> None:
    old = {"name": "old", "line": 1, "word": "red", "prompt": "red", "focus": 0.9, "entropy": 0.1}
    new = {**old, "name": "new", "line": 2, "focus": 0.5, "std": 2.0}
    (tmp_path / "batch.json").write_text("{}")
    (tmp_path / "index.jsonl").write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n")
    runs = xattn.open_runs(tmp_path)
    assert [run.name for run in runs.filter(min_focus=0.8)] == ["old"]
    assert [run.name for run in runs.filter(max_focus=0.8, min_entropy=0.1)] == ["new"]
    assert [run.name for run in runs.filter(min_std=1)] == ["new"]  # which an older index lacks
    assert [run.name for run in runs.filter(min_focus=None)] == ["old", "new"]
    for wrong in ("focus", "min_beauty", "max_centre"):
        with pytest.raises(TypeError, match=f"'{wrong}' is not a limit: .* mean, maximum, std"):
            runs.filter(**{wrong: 0.5})


def test_runs_can_be_filtered_sliced_and_named(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(6), tmp_path)
    runs = xattn.open_runs(tmp_path)
    red = runs.filter(word="RED")
    assert [run.line for run in red] == [1, 4]
    focus = [row["focus"] for row in runs.rows if row["word"] == "red"]
    best = runs.filter(word="red", min_focus=max(focus))
    assert len(best) == (2 if focus[0] == focus[1] else 1)
    assert not runs.filter(word="red", min_focus=1.0)
    assert [run.line for run in runs.filter(prompt="boat")] == [2, 6]
    assert [run.line for run in runs.filter(where=lambda row: row["seed"] == 3)] == [4]
    assert [run.name for run in runs[1:3]] == ["000002", "000003"]
    assert runs["000005"].line == 5
    assert runs[-1].line == 6
    with pytest.raises(KeyError, match="nobody"):
        runs["nobody"]
    with pytest.raises(FileNotFoundError, match="no batch"):
        xattn.open_runs(tmp_path / "images")


def test_only_the_asked_items_maps_are_read(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.run(pipe, items(4), tmp_path, batch_size=4)
    (shard,) = (tmp_path / "maps").iterdir()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # the last item's maps
    shard.write_bytes(data)
    runs = xattn.open_runs(tmp_path)
    broken = []
    for run in runs:
        try:
            assert run.trace.heatmap("a").maximum > 0
        except file_format.FileError:
            broken.append(run.line)
    assert len(broken) == 1


def test_an_index_that_leads_out_of_the_folder_is_refused(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(1), tmp_path / "runs")
    index = tmp_path / "runs/index.jsonl"
    index.write_text(index.read_text().replace("maps/", "../maps/").replace("images/", "/etc/"))
    run = xattn.open_runs(tmp_path / "runs")[0]
    with pytest.raises(ValueError, match="leads out of"):
        _ = run.trace
    with pytest.raises(ValueError, match="leads out of"):
        _ = run.image


# -- items ---------------------------------------------------------------------------------------

BAD: dict[str, tuple[str, str]] = {
    "not-json": ('{"prompt": "a red car"', "not JSON"),
    "list": ('["a red car"]', "an item must be an object"),
    "no-prompt": ('{"seed": 1}', "prompt is missing"),
    "prompt": ('{"prompt": 3}', "prompt must be a text, got 3"),
    "unknown": ('{"prompt": "a car", "sed": 1}', "an item has no field 'sed'; it has prompt, seed"),
    "twice": ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
    "bool": ('{"prompt": "a car", "seed": true}', "seed must be a whole number from 0"),
    "float": ('{"prompt": "a car", "steps": 2.5}', "steps must be a whole number from 1"),
    "zero": ('{"prompt": "a car", "steps": 0}', "steps must be a whole number from 1"),
    "nan": ('{"prompt": "a car", "guidance_scale": NaN}', "NaN is not a number"),
    "size": ('{"prompt": "a car", "size": [64]}', r"size must be \[height, width\]"),
    "sides": (
        '{"prompt": "a car", "size": "big"}',
        "size: 'big' is not a size: use 512, or 768x512",
    ),
    "large": ('{"prompt": "a car", "size": "64x90000"}', "a side of size must be a whole number"),
    "words": ('{"prompt": "a car", "words": "car"}', "words must be a list of words"),
    "edits": ('{"prompt": "a car", "edits": {"replace": {"a": "b"}}}', "edits must be a list"),
    "edit": ('{"prompt": "a car", "edits": [{"remove": "a"}]}', "an edit has one of replace"),
    "option": ('{"prompt": "a", "edits": [{"refine": "a b", "x": 1}]}', "refine has no 'x'"),
    "share": ('{"prompt": "a", "edits": [{"refine": "a b", "self_steps": 2}]}', "self_steps=2"),
    "escape": ('{"prompt": "a car", "name": "../../evil"}', "leaves the folder"),
    "absolute": ('{"prompt": "a car", "name": "/etc/evil"}', "leaves the folder"),
    "hidden": ('{"prompt": "a car", "name": ".hidden"}', "name '.hidden' must be"),
    "deep": ("[" * 100_000, "recursion|not JSON"),
    "huge": (
        '{"prompt": "a", "edits": [{"reweight": {"a": 1e39}}]}',
        "weight of 'a' must be a number in the range of float32, .* got 1e[+]39",
    ),
    "huger": ('{"prompt": "a", "edits": [{"reweight": {"a": 1%s}}]}' % ("0" * 400), "float32"),
    "late": (
        '{"prompt": "a", "edits": [{"refine": "a b", "self_steps": 1%s}]}' % ("0" * 400),
        "self_steps=1000.* is not a share of the run",
    ),
    "guidance": ('{"prompt": "a", "guidance_scale": 1%s}' % ("0" * 400), "guidance_scale must be"),
    "guided": ('{"prompt": "a", "guidance_scale": 1e30}', "guidance_scale must be .*1000, got 1e"),
    "heavy": (
        '{"prompt": "a", "edits": [{"reweight": {"a": 1e4}}]}',
        "the weight of 'a' must be a number from -1000 to 1000, got 10000",
    ),
    "halved": (r'{"prompt": "a", "edits": [{"refine": "a \ud800"}]}', "an edit has half a char"),
    "cut": (r'{"prompt": "a", "words": ["\ud800"]}', "words has half a character"),
    "half": (r'{"prompt": "a \ud800 car"}', r"prompt has half a character, '\\ud800', at place 2"),
    "negative": (r'{"prompt": "a", "negative_prompt": "\udfff"}', "negative_prompt has half"),
    "number": (
        '{"prompt": "a", "edits": [{"replace": {"red": 1}}]}',
        r'replace must be an object of words .*\{"red": "blue"\}, got',
    ),
    "blend": ('{"prompt": "a", "edits": [[{"refine": "a b"}, {"blend": [1]}]]}', "blend must be"),
    "steps": (
        '{"prompt": "a", "edits": [{"refine": "a b", "word_steps": [1]}]}',
        "word_steps must",
    ),
    "which": (
        '{"prompt": "a", "edits": [{"reweight": {"a": 2}, "occurrence": "x"}]}',
        "occurrence",
    ),
}
UNDRAWABLE: dict[str, tuple[str, str]] = {
    "word": ('{"prompt": "a red car", "words": ["blue"]}', "its words are: a, red, car"),
    "sides": ('{"prompt": "a car", "size": [63, 64]}', "multiples of 8"),
    "steps": ('{"prompt": "a car", "steps": 2000}', "the schedule has 1000"),
    "misfit": ('{"prompt": "a car", "edits": [{"replace": {"cat": "dog"}}]}', "'cat'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_listed_with_its_number(kind: str, tmp_path: Path) -> None:
    line, message = BAD[kind]
    good, failures = read_items(write(tmp_path / "p.jsonl", ['{"prompt": "a"}', "", line]))
    assert [one.line for one in good] == [1]
    assert [failure.line for failure in failures] == [3]
    assert str(failures[0]).startswith("line 3: ")
    assert re.search(message, failures[0].message)


def test_lines_that_are_not_utf8_or_take_a_name_twice_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [b'{"prompt": "a", "name": "One"}', b'{"prompt": "\xff"}', b'{"prompt": "a"}',
             b'{"prompt": "b", "name": "one"}', b'{"prompt": "b", "name": "000003"}']  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    good, failures = read_items(path)
    assert [one.name for one in good] == ["One", "000003"]
    assert [str(failure) for failure in failures] == [
        "line 2: not UTF-8: invalid start byte at byte 12",
        "line 4: name 'one' is taken by line 1",
        "line 5: name '000003' is taken by line 3",
    ]


def test_a_size_as_text_is_width_by_height() -> None:
    assert Item.from_json({"prompt": "a car", "size": "768x512"}).size == (512, 768)
    assert Item("a car", size="64") == Item("a car", size=(64, 64))


def test_an_item_from_python_is_checked_too() -> None:
    item = Item("a red car", words=["red"], edits=[xattn.Replace("red", "blue")])
    assert item.words == ("red",)
    assert item.edits == ((xattn.Replace("red", "blue"),),)
    blend = xattn.LocalBlend(mask=np.ones((8, 8)))
    with pytest.raises(ItemError, match="takes words, not a mask"):
        Item("a red car", edits=([xattn.Replace("red", "blue"), blend],))


def test_of_two_hundred_lines_the_fifty_bad_ones_are_listed(pipe: Any, tmp_path: Path) -> None:
    rand = random.Random(0)
    wrong = rand.sample(range(200), 50)
    bad = [line for line, _ in (*BAD.values(), *UNDRAWABLE.values())]
    lines: list[Any] = [
        {"prompt": item["prompt"], "size": [8, 8], "steps": 1} for item in items(200)
    ]
    for number, index in enumerate(wrong):
        lines[index] = bad[number % len(bad)]
    path = write(tmp_path / "p.jsonl", lines)
    report = batch.run(pipe, path, tmp_path / "runs", batch_size=50, images=None)
    assert report.drawn == 150
    assert [failure.line for failure in report.failures] == sorted(i + 1 for i in wrong)
    runs = xattn.open_runs(tmp_path / "runs")
    assert [run.line for run in runs] == [i + 1 for i in range(200) if i not in wrong]
    listed = (tmp_path / "runs/failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == sorted(i + 1 for i in wrong)
    assert {p.name for p in tmp_path.iterdir()} == {"p.jsonl", "runs"}
    for line, message in UNDRAWABLE.values():
        number = next(n for n in wrong if lines[n] == line) + 1
        found = next(f.message for f in report.failures if f.line == number)
        assert re.search(message, found)


# -- interrupted, and resumed --------------------------------------------------------------------


def test_a_folder_is_continued_only_when_that_is_meant(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(2), tmp_path)
    with pytest.raises(ValueError, match="holds a batch already"):
        batch.run(pipe, items(2), tmp_path)
    with pytest.raises(ValueError, match=r"begun with keep=\['layer'\]"):
        batch.run(pipe, items(2), tmp_path, resume=True, keep="step")
    with pytest.raises(ValueError, match="holds 'images'"):
        batch.run(pipe, items(2), _stranger(tmp_path))
    report = batch.run(pipe, items(3), tmp_path, resume=True)  # a line more
    assert (report.drawn, report.before, report.ok) == (1, 2, True)
    changed = [{**items(1)[0], "seed": 99}, *items(3)[1:]]
    report = batch.run(pipe, changed, tmp_path, resume=True)
    assert [failure.line for failure in report.failures] == [1]
    assert "'000001' was drawn before" in str(report.failures[0])
    assert len(xattn.open_runs(tmp_path)) == 3


def _stranger(folder: Path) -> Path:
    other = folder.parent / f"{folder.name}-other"
    (other / "images").mkdir(parents=True)
    return other


def named(*names: str) -> list[dict[str, Any]]:
    """Items with names and seeds of their own, whatever line they are in."""
    return [
        {"prompt": f"a red {name[0]}", "name": name, "seed": sum(name.encode()), "size": SMALL,
         "steps": 1}
        for name in names
    ]  # fmt: skip


def prompts(folder: Path) -> dict[str, str]:
    """What each stored item was asked for, its maps being those of that prompt."""
    runs = xattn.open_runs(folder)
    for run in runs:
        assert run.trace.prompts == (run.prompt,)
        assert {row["name"] for row in run.rows} == {run.name}
    return {run.name: run.prompt for run in runs}


def test_another_file_resumed_into_a_folder_leaves_what_is_finished(
    pipe: Any, tmp_path: Path
) -> None:
    cars = named(*(f"cars/{n}" for n in range(6)))
    boats = named(*(f"boats/{n}" for n in range(6)))
    batch.run(pipe, cars, tmp_path, batch_size=4)
    before = contents(tmp_path)
    report = batch.run(pipe, boats, tmp_path, batch_size=4, resume=True)
    assert (report.drawn, report.before, report.ok) == (6, 0, True)
    after = contents(tmp_path)
    assert {name: after[name] for name in before if name != "index.jsonl"} == {
        name: data for name, data in before.items() if name != "index.jsonl"
    }
    assert prompts(tmp_path) == {item["name"]: item["prompt"] for item in [*cars, *boats]}
    report = batch.run(pipe, cars, tmp_path, batch_size=4, resume=True)
    assert (report.drawn, report.before, report.ok) == (0, 6, True)
    assert len(prompts(tmp_path)) == 12


@pytest.mark.parametrize("order", ["dab", "adb", "abd", "bad", "db"])
def test_lines_may_be_added_anywhere_or_left_out(pipe: Any, tmp_path: Path, order: str) -> None:
    batch.run(pipe, named("a", "b"), tmp_path)
    before = {run.name: run.trace.heatmap("red").array for run in xattn.open_runs(tmp_path)}
    report = batch.run(pipe, named(*order), tmp_path, resume=True)
    assert (report.drawn, report.before, report.ok) == (1, len(order) - 1, True)
    assert prompts(tmp_path) == {name: f"a red {name}" for name in "abd"}
    runs = xattn.open_runs(tmp_path)
    for name in "ab":
        np.testing.assert_array_equal(runs[name].trace.heatmap("red"), before[name])


def test_an_item_of_a_known_name_and_other_content_is_refused(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, named("a", "b"), tmp_path)
    before = contents(tmp_path)
    wanted = [{**named("a")[0], "prompt": "a cat"}, {**named("b")[0], "name": "B"}, *named("d")]
    report = batch.run(pipe, wanted, tmp_path, resume=True)
    assert [failure.line for failure in report.failures] == [1, 2]
    assert "item 'a' was drawn before from other content" in report.failures[0].message
    assert "item 'B' was drawn before from other content" in report.failures[1].message
    assert report.drawn == 1
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before if name != "index.jsonl")


def test_a_lost_image_is_drawn_again_and_its_neighbours_stay(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, named("a", "b", "d"), tmp_path)
    before = contents(tmp_path)
    (tmp_path / "images/b.png").unlink()
    report = batch.run(pipe, named("x"), tmp_path, resume=True)  # of others
    assert (report.drawn, report.ok) == (1, True)
    assert list(prompts(tmp_path)) == ["a", "x", "d"]
    report = batch.run(pipe, named("a", "b", "d", "x"), tmp_path, resume=True)
    assert (report.drawn, report.before, report.ok) == (1, 3, True)
    assert sorted(prompts(tmp_path)) == ["a", "b", "d", "x"]
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in ("images/a.png", "images/d.png"))


def test_a_finished_group_is_never_written_over(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.prepare({}, resume=False)
    run = make_run()
    saved: list[str] = []
    writer.write("one", [run], {}, [{"name": "a"}])
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="group 'one' is finished"):
        writer.write("one", [run], {"images/a.png": saved.append}, [{"name": "b"}])
    assert contents(tmp_path) == before
    assert saved == []
    writer.close()


def test_any_exception_while_a_line_is_checked_is_that_lines_failure(tmp_path: Path) -> None:
    pipe = tiny.sd1()

    def convert(prompt: str, _: Any) -> str:
        if "boat" in prompt:
            raise LookupError("no\nboat")
        return prompt

    pipe.maybe_convert_prompt = convert
    report = batch.run(pipe, items(3), tmp_path)
    assert [str(failure) for failure in report.failures] == ["line 2: LookupError: no boat"]
    assert [run.line for run in xattn.open_runs(tmp_path)] == [1, 3]


def test_a_mended_line_is_drawn_on_resuming(pipe: Any, tmp_path: Path) -> None:
    lines: list[Any] = [*items(5)]
    lines[2] = "oops"
    report = batch.run(pipe, write(tmp_path / "p", lines), tmp_path / "runs", batch_size=2)
    assert (report.drawn, [f.line for f in report.failures]) == (4, [3])
    lines[2] = items(5)[2]
    path = write(tmp_path / "p", lines)
    report = batch.run(pipe, path, tmp_path / "runs", batch_size=2, resume=True)
    assert (report.drawn, report.before, report.ok) == (1, 4, True)
    assert [run.line for run in xattn.open_runs(tmp_path / "runs")] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "runs/failures.jsonl").exists()


def test_a_group_that_fails_stops_no_other(pipe: Any, tmp_path: Path) -> None:
    original, calls = pipe.vae.decode, 0

    def decode(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("no luck\nwith this")
        return original(*args, **kwargs)

    pipe.vae.decode = decode
    report = batch.run(pipe, items(6), tmp_path, batch_size=2)
    assert report.drawn == 4
    assert [str(failure) for failure in report.failures] == [
        "line 3: RuntimeError: no luck with this",
        "line 4: RuntimeError: no luck with this",
    ]
    assert [run.line for run in xattn.open_runs(tmp_path)] == [1, 2, 5, 6]
    assert batch.run(pipe, items(6), tmp_path, batch_size=2, resume=True).drawn == 2


def with_room_for(most: int, error: Exception, *, never: str = "-") -> Any:
    """Return a pipeline that has no memory for more images than so many, nor for one prompt."""
    pipe = tiny.sd1()
    encode, decode = pipe.encode_prompt, pipe.vae.decode
    prompts: list[Any] = []

    def encode_prompt(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        prompts[:] = prompt
        return encode(prompt, *args, **kwargs)

    def decode_some(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(latents) > most or never in prompts:
            raise error
        return decode(latents, *args, **kwargs)

    pipe.encode_prompt, pipe.vae.decode = encode_prompt, decode_some
    return pipe


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError("the maps would not fit"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["device", "maps", "cpu"],
)
def test_a_group_without_room_is_drawn_in_halves(error: Exception, tmp_path: Path) -> None:
    report = batch.run(with_room_for(2, error), items(7, steps=1), tmp_path / "runs", batch_size=7)
    assert (report.drawn, report.failures) == (7, ())
    parts = sorted(path.stem[:6] for path in (tmp_path / "runs/parts").iterdir())
    assert parts == ["000001", "000002", "000004", "000006"]  # 7 are 3 and 4; 1 and 2, 2 and 2
    runs = xattn.open_runs(tmp_path / "runs")
    assert [run.line for run in runs] == [1, 2, 3, 4, 5, 6, 7]
    for run in runs:
        assert run.trace.heatmap("a").maximum > 0


def test_a_half_is_what_it_would_be_as_a_group_of_its_own(tmp_path: Path) -> None:
    error = MemoryError("the maps would not fit")
    batch.run(with_room_for(2, error), items(7, steps=1), tmp_path / "runs", batch_size=7)
    runs = xattn.open_runs(tmp_path / "runs")
    two = [{**items(7, steps=1)[i], "seed": i} for i in (3, 4)]
    batch.run(tiny.sd1(), two, tmp_path / "two", batch_size=2)
    for alone, run in zip(xattn.open_runs(tmp_path / "two"), runs[3:5], strict=True):
        np.testing.assert_array_equal(np.asarray(alone.image), np.asarray(run.image))
    batch.run(with_room_for(2, error), items(7, steps=1), tmp_path / "again", batch_size=7)
    assert contents(tmp_path / "again") == contents(tmp_path / "runs")


def test_an_item_without_room_fails_alone_and_is_drawn_on_resuming(tmp_path: Path) -> None:
    what = [{**item, "prompt": f"{item['prompt']} {n}"} for n, item in enumerate(items(4))]
    never = what[0]["prompt"]
    short = with_room_for(4, torch.OutOfMemoryError("no room"), never=never)
    report = batch.run(short, what, tmp_path, batch_size=4)
    assert [str(failure) for failure in report.failures] == ["line 1: OutOfMemoryError: no room"]
    before = {run.line: run.trace.heatmap("a").array for run in xattn.open_runs(tmp_path)}
    assert list(before) == [2, 3, 4]
    report = batch.run(tiny.sd1(), what, tmp_path, batch_size=4, resume=True)
    assert (report.drawn, report.before, report.ok) == (1, 3, True)
    runs = xattn.open_runs(tmp_path)
    assert [run.line for run in runs] == [1, 2, 3, 4]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.trace.heatmap("a"), before[run.line])


def test_two_runs_at_once_in_one_folder_are_refused(pipe: Any, tmp_path: Path) -> None:
    batch.run(pipe, items(2), tmp_path / "runs")
    kept = contents(tmp_path / "runs")
    decode, refusals = pipe.vae.decode, []

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        here = contents(tmp_path / "runs")
        with pytest.raises(ValueError, match=r"another run is filling .*runs: wait") as refused:
            batch.run(tiny.sd1(), items(4), tmp_path / "runs", resume=True)
        refusals.append(refused)
        assert contents(tmp_path / "runs") == here
        return decode(*args, **kwargs)

    pipe.vae.decode = meanwhile
    report = batch.run(pipe, items(4), tmp_path / "runs", resume=True)
    assert (report.drawn, report.before, len(refusals)) == (2, 2, 1)
    after = contents(tmp_path / "runs")
    assert {name: after[name] for name in kept if name != "index.jsonl"} == {
        name: data for name, data in kept.items() if name != "index.jsonl"
    }
    pipe.vae.decode = decode
    assert batch.run(pipe, items(4), tmp_path / "runs", resume=True).before == 4  # free again


def test_killed_at_any_moment_and_resumed_nothing_is_lost_doubled_or_damaged(
    tmp_path: Path,
) -> None:
    what = items(12, steps=1)
    assert code_of(start(draw, what[:2], tmp_path / "warm")) == 0
    began = time.monotonic()
    assert code_of(start(draw, what, tmp_path / "whole")) == 0
    takes = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    rand, out, kills, finished = random.Random(0), tmp_path / "runs", 0, 0
    drawn: dict[str, int] = {}
    while kills < 20:
        child = start(draw, what, out, resume=True)
        time.sleep(rand.uniform(0, takes / 3))
        child.kill()
        kills += code_of(child) == -signal.SIGKILL
        for path in (out / "parts").glob("*.jsonl"):
            written = path.stat().st_mtime_ns
            assert drawn.setdefault(path.name, written) == written  # never done twice
            assert path.read_bytes() == whole[f"parts/{path.name}"]
        for path in (out / "maps").glob("*.safetensors"):
            assert path.read_bytes() == whole[f"maps/{path.name}"]
        if (out / "batch.json").exists():
            for run in xattn.open_runs(out):
                assert run.image is not None
        if (out / "index.jsonl").exists():
            finished += 1
            out, drawn = tmp_path / f"runs-{finished}", {}
    assert code_of(start(draw, what, out, resume=True)) == 0
    assert contents(out) == whole


def test_a_disk_that_is_full_stops_no_other_item(tmp_path: Path) -> None:
    what, out = [*items(4), *items(2, size=[64, 64]), *items(4)], tmp_path / "runs"
    assert code_of(start(draw, what, out, failing=[5, 6], drawn=8, largest_file=30_000)) == 0
    left = contents(out)
    assert not [name for name in left if "000005" in name or name.endswith(".tmp")]
    assert [run.line for run in xattn.open_runs(out)] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert code_of(start(draw, what, out, resume=True, drawn=2)) == 0
    assert code_of(start(draw, what, tmp_path / "whole")) == 0
    assert contents(out) == contents(tmp_path / "whole")


# -- processes -----------------------------------------------------------------------------------


def launched(launcher: Sequence[str], path: Path, out: Path, *more: str) -> tuple[int, str]:
    """Runs the command as a user's shell does, on the bundled model; gives its code and output."""
    command = [sys.executable, "-m", *launcher, "xattn.cli", "batch", str(path), "--out", str(out)]
    environment = os.environ | ONE_THREAD | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "--batch-size", "4", *more],
        env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


LAUNCHERS = {
    "accelerate": [  # on CPUs it starts one process, whatever it is told
        "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1",
        "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m",
    ],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"],
}  # fmt: skip


def here(capsys: pytest.CaptureFixture[str], path: Path, out: Path, *more: str) -> tuple[int, str]:
    """Run the command in this process: its code and output."""
    from xattn.cli import main

    with pytest.raises(SystemExit) as end:
        main(["batch", str(path), "--out", str(out), "--batch-size", "4", *more])
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out + shown.err


@pytest.mark.slow
def test_one_process_and_two_write_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = items(16, steps=1, size=[64, 64])
    what[5] = {**what[5], "edits": [{"reweight": {"a": 2.0}}]}
    what[9] = {"prompt": "a car", "words": ["boat"]}
    path = write(tmp_path / "p.jsonl", what)
    code, text = here(capsys, path, tmp_path / "1")
    assert (code, "15 items drawn, 1 failed" in text) == (1, True), text
    one = contents(tmp_path / "1")
    for name, launcher in LAUNCHERS.items():
        out = tmp_path / name
        code, text = launched(launcher, path, out)
        assert code != 0  # the launchers have codes of their own
        assert "line 10:" in text, text
        assert "15 items drawn, 1 failed" in text, text
        assert contents(out) == one
    code, text = here(capsys, path, out, "--resume")
    assert "0 items drawn, 15 done before, 1 failed" in text, text
    assert contents(out) == one
    assert len(xattn.open_runs(out)) == 15


def test_more_processes_than_groups_and_errors_of_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    assert together(draw, 3, items(1), tmp_path / "out", drawn=1) == [0, 0, 0]
    assert len(xattn.open_runs(tmp_path / "out")) == 1
    assert together(refused, 3, items(1), tmp_path / "taken", "holds 'file'") == [0, 0, 0]


def test_processes_leave_together_unless_one_fails(tmp_path: Path) -> None:
    assert together(leave, 3, tmp_path) == [0, 0, 0]
    assert together(fail_alone, 3) == [1, 1, 1]


def test_several_processes_refuse_standard_input_before_they_load_a_model(tmp_path: Path) -> None:
    words = ["batch", "-", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    said = "standard input can't be shared by 2 processes: name a file"
    assert together(typed, 2, words, said) == [0, 0]


# -- the command line ----------------------------------------------------------------------------


def test_the_command_says_how_it_ended(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer")
    pytest.importorskip("rich")
    from xattn.cli import main

    def command(*more: str) -> tuple[int, str]:
        asked = ["batch", path, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "o")]
        with pytest.raises(SystemExit) as end:
            main([*asked, "--images", "webp", "--batch-size", "2", *more])
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out + shown.err

    pipe.save_pretrained(tmp_path / "model")
    path = str(write(tmp_path / "p.jsonl", [*items(3), "oops"]))
    code, text = command()
    assert code == 1, text
    assert "line 4: not JSON" in text
    assert "3 items drawn, 1 failed" in text
    with Image.open(tmp_path / "o/images/000001.webp") as image:
        assert image.size == (16, 16)
    code, text = command()
    assert code == 2, text
    assert "holds a batch already" in text
    write(tmp_path / "p.jsonl", items(4))
    code, text = command("--resume", "--quiet")
    assert code == 0, text
    assert "1 items drawn, 3 done before" in text
    write(tmp_path / "p.jsonl", [*items(5), "oops"])
    code, text = command("--resume", "--json")
    assert code == 1, text
    assert json.loads(text) == {
        "drawn": 1, "before": 4, "out": str(tmp_path / "o"),
        "failures": [{"line": 6, "message": "not JSON: Expecting value at character 1"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "keep"),
    [
        ([], ["layer"]),
        (["--keep", "step,layer"], ["layer", "step"]),
        (["--keep", "step", "--keep", "layer, head"], ["head", "layer", "step"]),
    ],
)
def test_axes_are_named_by_commas_or_one_by_one(
    pipe: Any, tmp_path: Path, asked: list[str], keep: list[str]
) -> None:
    pytest.importorskip("typer")
    from xattn.cli import main

    pipe.save_pretrained(tmp_path / "model")
    path = str(write(tmp_path / "p.jsonl", items(1)))
    with pytest.raises(SystemExit) as end:
        main(["batch", path, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "o"),
              "--quiet", *asked])  # fmt: skip
    assert not end.value.code
    assert json.loads((tmp_path / "o/batch.json").read_text())["keep"] == keep
