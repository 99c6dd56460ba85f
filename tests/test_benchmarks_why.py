"""The benchmarks of attribution and dissection: their figures, and pages made of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import dissection, why
from benchmarks.tally import RESULTS


def test_agreement_is_spearmans_and_0_for_even_scores() -> None:
    assert why.agreement([1, 2, 3], [10, 20, 400]) == pytest.approx(1.0)
    assert why.agreement([3, 2, 1], [10, 20, 400]) == pytest.approx(-1.0)
    with pytest.warns(match="constant"):
        assert why.agreement([1, 1, 1], [10, 20, 400]) == 0.0


def test_differences_to_attention_are_taken_caption_by_caption() -> None:
    captions = {
        "1": {why.FIRST: 0.2, "occlusion": 0.6, "deletion, occlusion": 0.5},
        "2": {why.FIRST: 0.4, "occlusion": 0.9},
    }
    found = why.summed(captions)
    assert found["correlation"]["occlusion"]["mean"] == pytest.approx(0.75)
    assert found["above attention"]["occlusion"]["mean"] == pytest.approx(0.45)
    assert found["areas"]["deletion, occlusion"]["count"] == 1


def test_captions_asked_have_one_object_whose_colour_is_said() -> None:
    for one in dissection.asked(3):
        assert one.things[0].colour in one.caption.split()
        assert len(one.things) == 1
    pairs = dissection._pairs([[1.0], [0.5], [0.0]])
    assert [float((a + b)[0]) for a, b in pairs] == [1.5, 0.5]
    assert isinstance(pairs[0][0], np.ndarray)


def test_captions_of_other_weights_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(pipe: Any, seed: int, *_: Any) -> dict[str, Any]:
        asked.append(seed)
        return {}

    monkeypatch.setattr(why, "measured", measured)
    monkeypatch.setattr(why, "timed", lambda pipe: {})
    monkeypatch.setattr(why, "markdown", lambda results: "")
    monkeypatch.setattr(why, "digest_of", lambda pipe: pipe)
    options = argparse.Namespace(out=tmp_path, count="2", shapley=0, more=0, scenes=0)
    for weights in ("old", "old", "new"):
        why.measure({"mmdit": weights}, options)
    assert asked == [why.COUNT_SEED, why.COUNT_SEED + 1] * 2


def test_pages_show_the_results() -> None:
    """Mended by ``python -m benchmarks.why`` and ``python -m benchmarks.dissection``."""
    found = json.loads((RESULTS / "why.json").read_text("utf-8"))
    assert (RESULTS / "why.md").read_text("utf-8") == why.markdown(found)
    heads = json.loads((RESULTS / "dissection.json").read_text("utf-8"))
    page = dissection.markdown(heads["result"], heads["machine"])
    assert (RESULTS / "dissection.md").read_text("utf-8") == page
