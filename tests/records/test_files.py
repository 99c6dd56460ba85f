"""Recordings come back as they were saved, and damage is always a clear error."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.runs import LAYERS, make_run, tensors_of
from xattn.maps import daam
from xattn.records import files
from xattn.records import folder as run_folder
from xattn.records import format as file_format
from xattn.records.files import load, save
from xattn.records.folder import FolderStore, write_header
from xattn.records.format import FileError, json_value
from xattn.records.run import Run


def same(one: Run, other: Run) -> None:
    for name in (
        "prompts",
        "prompt_of",
        "positions",
        "layers",
        "timesteps",
        "latent",
        "keep",
        "info",
    ):
        assert getattr(one, name) == getattr(other, name)
    assert one.done == other.done
    for n in range(len(one.layers)):
        assert torch.equal(one.maps(n), other.maps(n))
    assert len(one.images) == len(other.images)
    for a, b in zip(one.images, other.images, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_runs_come_back_as_they_were(tmp_path: Path, dtype: Any) -> None:
    runs = [
        make_run(["a red car", "ein grünes Haus 🏠"], images=2, dtype=dtype),
        make_run(keep=["layer"], dtype=dtype, images=2),
    ]
    runs[1].images.extend([picture(0), picture(1)])
    path = tmp_path / "run.safetensors"
    save(path, runs)
    loaded = load(path)
    assert len(loaded) == 2
    for one, other in zip(runs, loaded, strict=True):
        same(one, other)
        assert other.store.read(0, [0]).dtype == dtype
        assert other.nbytes == one.nbytes
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_named_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "today" / "run.safetensors"
    with pytest.raises(FileNotFoundError) as missing:
        save(path, [make_run()])
    text = str(missing.value)
    assert str(path.parent) in text
    assert "make it first" in text
    assert ".tmp" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "below a file"])
def test_a_path_that_can_hold_no_file_is_refused_in_a_sentence(tmp_path: Path, kind: Any) -> None:
    path = tmp_path
    error: type[OSError] = IsADirectoryError
    if kind == "below a file":
        (tmp_path / "file").touch()
        path, error = tmp_path / "file" / "run.safetensors", NotADirectoryError
    with pytest.raises(error, match="choose another path") as refused:
        save(path, [make_run()])
    assert ".tmp" not in str(refused.value)


ODD = {
    "guidance_scale": float("nan"),
    "weights": {"red": float("-inf"), 3: (np.float32(0.5), torch.tensor(2))},
    "dtype": torch.float16,
    "text": "a \ud800",
}
PLAIN = {
    "guidance_scale": "nan",
    "weights": {"red": "-inf", "3": [0.5, 2]},
    "dtype": "torch.float16",
    "text": "a \ud800",
}


def test_a_fact_that_json_cannot_hold_never_costs_a_recording(tmp_path: Path) -> None:
    run = make_run()
    run.info = dict(ODD)
    save(tmp_path / "run.safetensors", [run])
    (loaded,) = load(tmp_path / "run.safetensors")
    assert loaded.info == PLAIN
    same(replace(run, info=PLAIN), loaded)
    write_header(tmp_path / "folder", run)
    header = json.loads(json.loads((tmp_path / "folder/header.json").read_text())["header"])
    assert header["runs"][0]["info"] == PLAIN


def test_facts_that_json_can_hold_are_kept_as_they_are() -> None:
    facts = {"a": [1, 2.5, None, True, "é"], "b": {"c": -0.0}, "d": 10**30}
    assert repr(json_value(facts)) == repr(facts)


@settings(max_examples=25)
@given(
    text=st.lists(st.text("abc<>\"'&é猫🚗", min_size=1, max_size=6), min_size=1, max_size=5).map(
        " ".join
    ),
    steps=st.integers(1, 4),
    keep=st.sets(st.sampled_from(["step", "layer", "head"])),
    images=st.integers(1, 3),
)
def test_any_run_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: Any, steps: Any, keep: Any, images: Any
) -> None:
    path = tmp_path_factory.mktemp("any") / "run.safetensors"
    run = make_run([text], steps=steps, keep=sorted(keep), images=images, layers=LAYERS[:2])
    save(path, [run])
    same(run, load(path)[0])


def test_only_complete_steps_are_saved(tmp_path: Path) -> None:
    run = make_run(steps=5, done=2)
    save(tmp_path / "run.safetensors", [run, make_run(done=0)])
    (loaded,) = load(tmp_path / "run.safetensors")
    same(run, loaded)
    assert len(loaded.timesteps) == 5
    with pytest.raises(ValueError, match="nothing to save"):
        save(tmp_path / "none.safetensors", [make_run(done=0)])


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save(path, [make_run()])
    before = path.read_bytes()
    broken = make_run(seed=1)
    broken.images = [object()]  # fails while it is written
    with pytest.raises(AttributeError):
        save(path, [broken])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save(tmp_path / "run.safetensors", [make_run()])
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


# -- damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "run.safetensors"
    run = make_run(layers=LAYERS[1:3], steps=2)
    run.images.append(picture(0))
    save(path, [run])
    return path.read_bytes()


def header_end(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


def test_every_one_of_400_mutations_is_a_clear_error(tmp_path: Path, sound: Any) -> None:
    rng = random.Random(0)
    end = header_end(sound)
    path, original = tmp_path / "run.safetensors", None
    path.write_bytes(sound)
    (original,) = load(path)
    clear = 0
    for case in range(400):
        data = bytearray(sound)
        if case % 4 == 0:
            data = data[: rng.randrange(len(data))]
        elif case % 4 == 1:
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        elif case % 4 == 2:
            data[rng.randrange(end, len(data))] ^= 1 << rng.randrange(8)
        else:
            at, length = rng.randrange(len(data)), rng.randrange(1, 64)
            data[at : at + length] = rng.randbytes(rng.randrange(64))
        if bytes(data) == sound:
            continue
        path.write_bytes(data)
        error = None
        try:
            (loaded,) = load(path)
        except FileError as raised:
            error = raised
        if error is None:  # a change that says nothing, such as of the padding
            same(original, loaded)
        else:
            assert str(path) in str(error)
            clear += 1
    assert clear > 390


@settings(max_examples=200)
@given(data=st.data())
def test_no_mutation_crashes_or_gives_a_wrong_map(
    tmp_path_factory: pytest.TempPathFactory, sound: Any, data: Any
) -> None:
    at = data.draw(st.integers(0, len(sound) - 1))
    put = data.draw(st.binary(max_size=16))
    cut = data.draw(st.integers(0, 16))
    path = tmp_path_factory.mktemp("cut") / "run.safetensors"
    path.write_bytes(sound)
    (original,) = load(path)
    path.write_bytes(sound[:at] + put + sound[at + cut :])
    try:
        (loaded,) = load(path)
    except FileError:
        return
    same(original, loaded)


def forged(path: Path, change: Any, version: str | None = None) -> None:
    """Writes a file whose checksums are right and whose header was changed."""
    run = make_run(layers=LAYERS[:2], steps=2)
    save(path, [run])
    tensors = load_file(path)
    with files.safe_open(path, framework="pt") as file:  # type: ignore[attr-defined]
        metadata = dict(file.metadata())
    header = json.loads(metadata["header"])
    change(header["runs"][0], tensors, header)
    header["sums"] = {
        name: file_format.checksum(file_format.raw_bytes(t)) for name, t in tensors.items()
    }
    metadata = file_format.sealed_header(header)
    if version is not None:
        metadata["version"] = version
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run, t, h: run.update(prompt_of=[1]), "images do not match its prompts"),
        (lambda run, t, h: run.update(prompt_of=[]), "no maps"),
        (lambda run, t, h: run.update(positions=[2, 1, 3, 4, 5, 6]), "not ascending"),
        (lambda run, t, h: run.update(positions=[-1, 1, 2, 3, 4, 5]), "negative"),
        (lambda run, t, h: run.update(keep=["step", "wing"]), "unknown"),
        (lambda run, t, h: run.update(done=7), "7 of 2 steps"),
        (lambda run, t, h: run.update(done=1), "its header says"),
        (lambda run, t, h: run.update(dtype="float16"), "its header says"),
        (lambda run, t, h: run.update(dtype="int8"), "KeyError"),
        (lambda run, t, h: run.update(latent=[0, 8]), "a grid of 0x8"),
        (lambda run, t, h: run.update(layers=run["layers"][::-1]), "its header says"),
        (lambda run, t, h: run["layers"][0].update(heads=0), "no head"),
        (lambda run, t, h: run["prompts"][0].update(tokens=7), "damaged"),
        (lambda run, t, h: run.pop("info"), "KeyError"),
        (lambda run, t, h: run.update(timesteps="soon"), "damaged"),
        (lambda run, t, h: t.update({"0/layer/0": t["0/layer/0"] + float("inf")}), "probabilities"),
        (lambda run, t, h: t.update({"0/layer/1": -t["0/layer/1"]}), "probabilities"),
        (lambda run, t, h: t.update({"more": torch.zeros(1)}), "unknown tensors: .'more'"),
        (lambda run, t, h: t.pop("0/layer/1"), "KeyError"),
        (lambda run, t, h: h.update(runs=[]), "unknown tensors"),
        (
            lambda run, t, h: (run.update(images=1), t.update({"0/image/0": torch.ones(9).byte()})),
            "damaged",
        ),
    ],
)
def test_a_header_that_does_not_fit_its_tensors_is_refused(
    tmp_path: Path, change: Any, message: Any
) -> None:
    path = tmp_path / "run.safetensors"
    forged(path, change)
    with pytest.raises(FileError, match=message):
        load(path)


def test_maps_of_a_model_out_of_its_range_are_saved_and_loaded(tmp_path: Path) -> None:
    run: Any = make_run()
    run.store.tensors[1][1:] = float("nan")
    run.affinity = torch.full((1, 8, 12, 8, 12), float("nan"))
    save(tmp_path / "run.safetensors", [run])
    (loaded,) = load(tmp_path / "run.safetensors")
    for n in range(len(run.layers)):
        torch.testing.assert_close(loaded.maps(n), run.maps(n), rtol=0, atol=0, equal_nan=True)
    assert loaded.affinity is not None
    assert loaded.affinity.isnan().all()


def test_a_newer_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    forged(path, lambda *_: None, version="2")
    with pytest.raises(FileError, match=r"format version 2.*upgrade xattn"):
        load(path)


def test_foreign_and_missing_files_are_clear_errors(tmp_path: Path) -> None:
    foreign = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(3)}, foreign)
    with pytest.raises(FileError, match="not a recording of xattn"):
        load(foreign)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(FileError, match="damaged, or is not a recording"):
        load(text)
    text.write_bytes(b"")
    with pytest.raises(FileError, match="damaged, or is not a recording"):
        load(text)
    with pytest.raises(FileNotFoundError, match="no recording"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"header\.json is missing"):
        load(tmp_path)


# -- folders


def test_the_folder_of_the_command_line_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"")
    save(tmp_path / file_format.TRACE, [make_run()])
    assert len(load(tmp_path)) == 1


def streamed(folder: Path, run: Run) -> Run:
    store = FolderStore(folder, tuple(tuple(t.shape) for t in tensors_of(run)), torch.float16)
    for step in range(run.done):
        store.write(step, [t[step] for t in tensors_of(run)])
    run = replace(run, store=store)
    run_folder.write_header(folder, run)
    return run


def test_a_folder_is_written_step_by_step_and_read_when_asked(tmp_path: Path) -> None:
    run = make_run(dtype=torch.float16, steps=3)
    run.images.append(picture(0))
    written = streamed(tmp_path / "run", run)
    assert written.nbytes == run.nbytes
    (loaded,) = load(tmp_path / "run")
    same(run, loaded)
    assert isinstance(loaded.store, FolderStore)
    assert torch.equal(loaded.store.read(1, [2, 0]), run.store.read(1, [2, 0]))
    assert torch.equal(daam.token_maps(loaded, [2]), daam.token_maps(run, [2]))


def test_a_folder_of_folders_holds_several_runs(tmp_path: Path) -> None:
    for n in range(3):
        streamed(tmp_path / f"run-{n}", make_run(dtype=torch.float16, steps=n + 1))
    assert [run.done for run in load(tmp_path)] == [1, 2, 3]


def test_a_streamed_run_can_be_saved_to_one_file(tmp_path: Path) -> None:
    run = streamed(tmp_path / "run", make_run(dtype=torch.float16))
    save(tmp_path / "run.safetensors", [run])
    same(run, load(tmp_path / "run.safetensors")[0])


def test_a_damaged_folder_is_a_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = make_run(dtype=torch.float16, steps=2)
    run.images.append(picture(0))
    streamed(folder, run)
    step = folder / "step-00001.safetensors"
    sound = step.read_bytes()

    step.write_bytes((folder / "step-00000.safetensors").read_bytes())
    with pytest.raises(FileError, match="it belongs to step 0"):
        load(folder)[0].store.read(0, [1])

    for data in (sound[:-1], sound[:-1] + b"!", b"", b"\0" * 20):
        step.write_bytes(data)
        last = len(LAYERS) - 1
        with pytest.raises(FileError, match="step-00001"):
            [load(folder)[0].store.read(n, [1]) for n in range(last + 1)]

    step.unlink()
    with pytest.raises(FileError, match=r"step-00001\.safetensors is missing"):
        load(folder)
    step.write_bytes(sound)

    png = folder / "image-00000.png"
    png.write_bytes(png.read_bytes()[:-1])
    with pytest.raises(FileError, match="image has changed"):
        load(folder)

    header = folder / "header.json"
    text = header.read_text()
    header.write_text(text.replace("red", "rad"))
    with pytest.raises(FileError, match="header has changed"):
        load(folder)
    header.write_text(text[:-5])
    with pytest.raises(FileError, match="damaged"):
        load(folder)


def test_a_folder_refuses_maps_of_another_shape(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, ((1, 1, 1, 2, 4, 4),), torch.float16)
    with pytest.raises(ValueError, match="expected"):
        store.write(0, [torch.zeros(1, 1, 3, 4, 4)])


def test_a_recording_saved_twice_has_the_same_bytes(tmp_path: Path) -> None:
    runs = [make_run(), make_run(["two cats"])]
    for n in range(4):
        files.save(tmp_path / f"{n}.safetensors", runs)
    assert len({(tmp_path / f"{n}.safetensors").read_bytes() for n in range(4)}) == 1


def test_one_run_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "runs.safetensors"
    runs = [make_run(), make_run(["two cats"])]
    files.save(path, runs)
    one = files.load_run(path, 1)
    assert one.prompts == runs[1].prompts
    assert torch.equal(one.maps(0), files.load(path)[1].maps(0))
    with pytest.raises(FileError, match="run 2 was asked for, it has 2"):
        files.load_run(path, 2)
    with pytest.raises(FileNotFoundError):
        files.load_run(tmp_path / "nothing", 0)
