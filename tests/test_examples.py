"""Every example runs on the bundled model, and on one of the user's; and writes its pictures."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = [
    "amplify", "custom_loop", "local_mask", "mend", "own_picture", "place", "recolour", "refine",
    "swap",
]  # fmt: skip


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Return ``run(name, *options)``, which runs an example and returns what it wrote."""

    def run(name: str, *options: str) -> list[Path]:
        out = tmp_path / f"{name}.png"
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, "--steps", "2", "--out", str(out), *options])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return list(tmp_path.glob(f"{name}*.png"))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, example: Callable[..., list[Path]], toyland: object) -> None:
    assert example(name)


@pytest.mark.slow
def test_teaching_writes_a_sheet_and_a_lora(
    example: Callable[..., list[Path]], toyland: object
) -> None:
    few = ["--scenes", "4", "--drawing-steps", "2"]
    sheet, *_ = [path for path in example("teach", *few) if path.suffix]
    assert list(sheet.with_suffix("").glob("*.safetensors"))


@pytest.mark.parametrize("name", ["recolour", "custom_loop"])
def test_examples_take_a_model_of_the_users(
    name: str, example: Callable[..., list[Path]], tmp_path: Path
) -> None:
    tiny.sd1().save_pretrained(tmp_path / "model")
    assert example(name, "--model", str(tmp_path / "model"))


def test_an_example_takes_sdxl_where_its_loop_is_the_pipelines(
    example: Callable[..., list[Path]], tmp_path: Path
) -> None:
    tiny.sdxl().save_pretrained(tmp_path / "model")
    assert example("amplify", "--model", str(tmp_path / "model"))
    with pytest.raises(SystemExit, match=r"SDXL's UNet needs added_cond_kwargs"):
        example("custom_loop", "--model", str(tmp_path / "model"))
