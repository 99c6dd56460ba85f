"""The notebooks' cells run, in order; what they show can be drawn."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import transformers

EXAMPLES = Path(__file__).parents[1] / "examples"


def cells(name: str) -> list[dict[str, Any]]:
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = notebook["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any]) -> None:
    """Run a cell, and draw what its last line shows."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    if shown is not None:
        assert shown._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_tour_runs() -> None:
    names: dict[str, Any] = {}
    for cell in cells("tour.ipynb"):
        source = "".join(cell["source"]).replace(
            '"num_inference_steps": 20', '"num_inference_steps": 4'
        )
        run(source.replace("steps=[0, 6, 12, 19]", "steps=[0, 3]"), names)


def test_the_tour_shows_what_it_printed_and_drew() -> None:
    for cell in cells("tour.ipynb"):
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds
        if isinstance(ast.parse("".join(cell["source"])).body[-1], ast.Expr) and kinds == []:
            assert "".join(cell["source"]).splitlines()[-1].startswith("pipe.set_progress_bar")


@pytest.mark.slow
def test_the_lines_for_flux_run_on_a_tiny_one() -> None:
    pipe = transformers.flux()
    names: dict[str, Any] = {"pipe": pipe}
    for cell in cells("flux.ipynb"):
        source = "".join(cell["source"])
        if "from_pretrained" in source:
            kept = [line for line in source.splitlines() if not line.startswith("pipe")]
            source = "\n".join(kept).replace(
                '"height": 768, "width": 768',
                '"height": 32, "width": 32, "max_sequence_length": 32',
            )
            source = source.replace('"num_inference_steps": 4', '"num_inference_steps": 2')
        run(source, names)
