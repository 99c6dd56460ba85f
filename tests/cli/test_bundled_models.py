"""Each bundled model is recorded, drawn in batches and shown in the app: none is a UNet alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xattn
from xattn.app.drawing import Service
from xattn.app.settings import Settings
from xattn.models.loading import load_pipeline

pytest.importorskip("typer")

PROMPT = "a red car on a green lawn"


@pytest.fixture(scope="module", params=["contextual", "mmdit"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_bundled_model_is_recorded_by_the_command(xattn_command: Any, name: str) -> None:
    more = ["--steps", "1", "--word", "red", "--size", "64x64", "--json"]
    code, out, err = xattn_command("record", PROMPT, "--model", name, *more)
    assert (code, err) == (0, "")
    assert list(json.loads(out)["words"]) == ["red"]
    assert xattn.load("xattn-record/trace.safetensors").heatmap("red").maximum > 0


def test_a_bundled_model_draws_a_batch(xattn_command: Any, name: str) -> None:
    lines = [{"prompt": PROMPT, "steps": 1, "words": ["red"], "size": [64, 64]}]
    lines.append({**lines[0], "size": [64, 80]})
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = xattn_command("batch", "lines.jsonl", "--out", "runs", "--model", name, "--json")
    assert (code, json.loads(out)["drawn"]) == (0, 2)
    (first, second) = xattn.open_runs("runs")
    assert first.trace.heatmap("red").maximum > 0
    assert second.image.size == (80, 64)


def test_a_folder_without_t5_is_loaded(tmp_path: Path) -> None:
    load_pipeline("mmdit", device="cpu").save_pretrained(tmp_path / "saved")
    pipe = load_pipeline(str(tmp_path / "saved"), device="cpu")
    assert pipe.text_encoder_3 is None
    assert pipe.tokenizer_3 is None


def test_the_app_draws_with_a_bundled_model(tmp_path: Path, name: str) -> None:
    pipe = load_pipeline(name, device="cpu")
    service = Service(pipe, name, root=tmp_path)
    assert service.sides() == (128, 128)
    height = width = service.shelf.factor() * 4
    drawing = service.draw(
        Settings(PROMPT, steps=1, height=height, width=width), lambda done, most: None
    )
    assert drawing.image.size == (width, height)
    assert not np.array_equal(drawing.overlay(1), drawing.image)
    assert (drawing.folder / "report.html").is_file()
