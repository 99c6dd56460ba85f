"""Permutation importance over a batch's folder: its items as drawn, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xattn
from tests import tiny
from xattn import batch

PROMPTS = ("a red car", "two cats", "a lawn")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def runs(pipe: Any, tmp_path_factory: Any) -> batch.Runs:
    folder = tmp_path_factory.mktemp("batch") / "runs"
    items = [
        {"prompt": text, "seed": n, "size": [16, 16], "steps": 1, "guidance_scale": 3 + n}
        for n, text in enumerate(PROMPTS)
    ]
    batch.run(pipe, items, folder)
    return xattn.open_runs(folder)


def test_a_batchs_items_are_shuffled_as_a_list_would_be(
    pipe: Any, runs: batch.Runs, tmp_path: Path
) -> None:
    found = runs.importance(pipe, cache=tmp_path)
    items = [
        {"prompt": text, "seed": n, "guidance_scale": float(3 + n)}
        for n, text in enumerate(PROMPTS)
    ]
    wanted = xattn.importance(pipe, items, num_inference_steps=1, height=16, width=16)
    assert found.words == wanted.words == ("prompt", "seed", "guidance_scale")
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-5)
    assert found.intervals is not None
    assert (found.intervals[:, 0] <= found.values).all()
    assert found.bar().width == 640
    assert found.calls == 3 + 9
    for file in list(tmp_path.rglob("*.safetensors"))[:2]:
        file.unlink()  # as if interrupted
    again = runs.importance(pipe, cache=tmp_path)
    assert again.calls == 1 + 2
    np.testing.assert_allclose(again.values, found.values, rtol=1e-6)


def test_a_pipeline_that_draws_other_pictures_is_refused(pipe: Any, runs: batch.Runs) -> None:
    with pytest.raises(ValueError, match="does not draw the picture of the batch"):
        runs.importance(tiny.sd1(seed=5))
    with pytest.raises(ValueError, match="two items or more"):
        runs[:1].importance(pipe)
