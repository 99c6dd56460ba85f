"""Two batches compared by word: exact changes, intervals over images, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xattn
from tests import tiny
from tests.runs import make_run
from xattn import batch
from xattn.batch.folder import Writer
from xattn.batch.layout import MAPS
from xattn.results.trace import Trace

TEXT = "a red car"


def stored(folder: Path, seeds: range, steps: int = 2) -> batch.Runs:
    """Write a batch of made-up runs, an item for each seed."""
    writer = Writer(folder)
    writer.prepare({"keep": ["step"]}, False)
    for number, seed in enumerate(seeds):
        run = make_run([TEXT], steps=steps, seed=seed)
        rows: list[Any] = [
            {"line": number, "name": str(number), "prompt": TEXT, "seed": seed, "edit": None,
             "image": None, "maps": f"{MAPS}/{number}.safetensors", "run": 0, "row": 0,
             "word": word, "digest": "0", **Trace([run]).heatmap(word).measure()}
            for word in ("red", "car")
        ]  # fmt: skip
        writer.write(str(number), [run], {}, rows)
    writer.finish([])
    writer.close()
    return xattn.open_runs(folder)


def test_changes_are_means_over_pairs_with_an_interval(tmp_path: Path) -> None:
    mine, other = stored(tmp_path / "a", range(5)), stored(tmp_path / "b", range(9, 15), steps=4)
    found = mine.compare(other, measures=["mean", "focus"])
    gains = [
        mine[n].trace.heatmap("red").mean / 2 - other[n].trace.heatmap("red").mean / 4
        for n in range(5)
    ]
    change = found["red"]["mean"]
    assert change.mean == pytest.approx(np.mean(gains), rel=1e-5)
    assert change.low is not None
    assert change.high is not None
    assert min(gains) <= change.low < change.mean < change.high <= max(gains)
    assert found.counts == {"red": 5, "car": 5}
    assert found.unpaired == 1
    back = other.compare(mine, measures=["mean", "focus"])
    assert back["car"]["focus"].mean == pytest.approx(-found["car"]["focus"].mean)
    assert str(found).splitlines()[0].split() == ["word", "images", "mean", "focus"]
    assert len(found.to_json()) == 4


def test_a_batch_compared_with_itself_has_not_changed(tmp_path: Path) -> None:
    runs = stored(tmp_path / "a", range(3))
    for _, measures in runs.compare(runs):
        for change in measures.values():
            assert (change.mean, change.low, change.high) == (0, 0, 0)
            assert not change.sure
    single = runs[:1].compare(runs)["red"]["entropy"]
    assert (single.low, single.high, single.sure) == (None, None, False)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    runs = stored(tmp_path / "a", range(2))
    with pytest.raises(ValueError, match="each is one of mean, maximum"):
        runs.compare(runs, measures=["peak"])
    with pytest.raises(ValueError, match="no word of an item in common"):
        runs[:1].compare(runs[1:])


def test_two_drawn_batches_are_compared(tmp_path: Path) -> None:
    items = [{"prompt": TEXT, "size": [16, 16], "steps": 1, "seed": n} for n in range(2)]
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, seed in zip(folders, (0, 1), strict=True):
        batch.run(tiny.sd1(seed=seed), items, folder)
    one, two = map(xattn.open_runs, folders)
    assert set(one.compare(two).changes) == {"a", "red", "car"}
