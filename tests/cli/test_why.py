"""``xattn why`` from a prompt, and from a given picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tiny

PROMPT = "a red car"
FAST = ["--steps", "2", "--size", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("why") / "model"
    tiny.sd1().save_pretrained(folder)
    return str(folder)


def test_why_draws_a_prompt_and_writes_table_bars_and_maps(xattn_command: Any, model: str) -> None:
    words = ["why", PROMPT, "--model", model, *FAST, "--how", "shapley", "--faithfulness"]
    code, out, err = xattn_command(*words)
    assert code == 0, err
    assert "shapley of 3 words at 2 noised pictures: 16 denoiser rows" in err
    assert out.splitlines()[0].split() == ["word", "score", "attention"]
    for name in ("image", "words", "maps", "faithfulness", "01-red"):
        with Image.open(f"xattn-why/{name}.png") as drawn:
            assert drawn.width >= 16
    page = Path("xattn-why/report.html").read_text("utf-8")
    assert "Above, where a word is read; below, where it acts" in page
    assert '"title":"red","text":"shapley: ' in page


def test_why_of_a_given_picture_as_json(xattn_command: Any, model: str) -> None:
    Image.new("RGB", (16, 16), "red").save("photo.png")
    words = ["why", PROMPT, "--model", model, "--image", "photo.png", "--size", "16"]
    code, out, _ = xattn_command(*words, "--word", "red car", "--level", "0.5", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["words"] == ["red car"]
    assert (told["levels"], told["calls"], told["how"]) == ([0.5], 2, "occlusion")
    assert all(Path(path).exists() for path in told["files"])
    for wrong, says in (
        (["--how", "magic"], "not a method"),
        (["--word", "boat"], "is not in the prompt"),
        (["--steps", "3"], "--image gives one"),
    ):
        code, _, err = xattn_command(*words, *wrong)
        assert code == 2
        assert says in err
