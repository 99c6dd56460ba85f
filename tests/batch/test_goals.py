"""Goals in a batch's lines steer as ``xattn.steer`` does, and are refused in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from xattn import batch
from xattn.batch.goals import goals_of
from xattn.batch.items import Item
from xattn.batch.lines import ItemError

LINE: dict[str, Any] = {
    "prompt": "a red car and a boat", "seed": 1, "size": [16, 16], "steps": 2,
}  # fmt: skip
LEFT = {"place": {"boat": [0.0, 0.0, 0.5, 1.0]}}


def test_fields_become_goals() -> None:
    goals = goals_of("mug", {"pink": "fish"}, {"star": "left"}, ["cat", "dog"])
    assert [str(goal) for goal in goals] == [
        "Present('mug')", "Bind('pink', 'fish')", "Place('star', 'left')", "Apart('cat', 'dog')",
    ]  # fmt: skip
    assert goals_of(None, None, None, None) == ()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("present", [], "present must be a word or a list of words, got"),
        ("bind", ["pink", "fish"], "bind must be an object, each word with a noun, got"),
        ("place", {"star": "middle"}, "'middle' is not a place"),
        ("place", {"star": 1}, "box=1 must be .left, top, right, bottom."),
        ("apart", "cat", "Apart needs two words"),
    ],
)
def test_what_is_not_a_goal_is_a_sentence(field: str, value: Any, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        Item.from_json({"prompt": "a cat", field: value})


def test_a_steered_line_is_drawn_as_in_a_steered_block_and_recorded(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    edited = {**LINE, **LEFT, "edits": [{"replace": {"red": "blue"}}], "name": "edited"}
    lines = [LINE, {**LINE, **LEFT}, edited, {**LINE, "present": "mug"}]
    report = batch.run(pipe, lines, tmp_path / "runs", batch_size=4)
    assert report.drawn == 3
    assert "its words are: a, red, car" in report.failures[0].message
    plain, steered, both = xattn.open_runs(tmp_path / "runs")

    options = {"height": 16, "width": 16, "num_inference_steps": 2}
    goal = xattn.Place("boat", (0.0, 0.0, 0.5, 1.0))
    with xattn.record(pipe, keep="layer") as trace, xattn.steer(pipe, goal) as steering:
        image = pipe(LINE["prompt"], generator=torch.Generator().manual_seed(1), **options).images
    assert steering.gradient_steps
    np.testing.assert_array_equal(np.asarray(steered.image), np.asarray(image[0]))
    assert not np.array_equal(np.asarray(steered.image), np.asarray(plain.image))
    np.testing.assert_array_equal(steered.trace.heatmap("boat"), trace.heatmap("boat"))
    assert len(both.images) == 2
    assert not np.array_equal(np.asarray(both.images[0]), np.asarray(plain.image))
