"""Words at a place, differences of runs, competition and entropies: exact on made-up runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import xattn
from tests.runs import LAYERS, make_run
from xattn.maps import competition
from xattn.records.run import MemoryStore
from xattn.views import diverging

PLACE = (0.3, 0.6)


@pytest.fixture
def trace() -> xattn.Trace:
    return xattn.Trace([make_run()])


def test_shares_at_a_place_sum_to_one_over_all_tokens(trace: xattn.Trace) -> None:
    found = trace.at(PLACE)
    assert [share for _, share in found] == sorted((s for _, s in found), reverse=True)
    assert sorted(word for word, _ in found) == sorted(["a", "red", "car", "on", "a", "lawn"])
    assert sum(share for _, share in found) + found.rest == pytest.approx(1)
    assert found.first == found.shares[0][0]
    assert f"{100 * found.rest:.1f} %" in str(found)


def test_a_share_is_the_heat_map_there_per_step(trace: xattn.Trace) -> None:
    heat = np.asarray(trace.heatmap("red"))  # (8, 12)
    shares = dict(trace.at(PLACE).shares)
    assert shares["red"] == pytest.approx(heat[int(0.6 * 8), int(0.3 * 12)] / 3, rel=1e-5)
    one = dict(trace.at(PLACE, steps=1, layers=LAYERS[0].name).shares)
    alone = np.asarray(trace.heatmap("red", steps=1, layers=LAYERS[0].name))
    assert one["red"] == pytest.approx(alone[4, 3], rel=1e-5)


def test_places_are_told_by_step_layer_and_head(trace: xattn.Trace) -> None:
    assert list(trace.at_each(PLACE, "step")) == ["step 0", "step 1", "step 2"]
    by_layer = trace.at_each(PLACE, "layer")
    assert list(by_layer) == [layer.name for layer in LAYERS]
    by_head = trace.at_each(PLACE, "head")
    name = LAYERS[0].name
    heads = [dict(by_head[f"{name}, head {n}"].shares)["red"] for n in (0, 1)]
    assert dict(by_layer[name].shares)["red"] == pytest.approx(np.mean(heads), rel=1e-5)
    with pytest.raises(ValueError, match="by='word' is none of step, layer, head"):
        trace.at_each(PLACE, "word")


def test_a_place_outside_is_refused(trace: xattn.Trace) -> None:
    assert trace.at((1, 1)).rest >= 0
    with pytest.raises(ValueError, match="each in \\[0, 1\\] from the top left corner"):
        trace.at((0.5, 1.2))


def test_a_run_compared_with_itself_is_zero_everywhere(trace: xattn.Trace) -> None:
    same = trace.compare(trace, "red")
    assert not np.asarray(same).any()
    assert same.extreme == 0
    assert same.overlay().size[0] > same.overlay(colorbar=False).size[0]


def test_differences_are_per_step_and_signed() -> None:
    one, other = make_run(seed=1), make_run(seed=2, steps=2)
    found = xattn.Trace([one]).compare(xattn.Trace([other]), "red", other_word="lawn")
    want = (
        xattn.Trace([one]).heatmap("red").array / 3 - xattn.Trace([other]).heatmap("lawn").array / 2
    )
    np.testing.assert_allclose(found.array, want, atol=1e-6)
    back = xattn.Trace([other]).compare(xattn.Trace([one]), "lawn", other_word="red")
    np.testing.assert_allclose(found.array, -back.array, atol=1e-6)
    assert found.extreme == pytest.approx(np.abs(want).max(), rel=1e-5)


def test_the_diverging_scale_is_white_at_zero_and_red_above() -> None:
    values = np.zeros((2, 2), np.float32)
    values[0, 0], values[1, 1] = 1, -1
    picture = np.asarray(diverging.overlay(values, None, opacity=1)).astype(int)
    assert picture[0, 0, 0] > picture[0, 0, 2]
    assert picture[-1, -1, 2] > picture[-1, -1, 0]
    even = np.asarray(diverging.overlay(values * 0, None, opacity=1))
    assert (even >= 246).all()


def test_competing_words_share_each_place(trace: xattn.Trace) -> None:
    shares = trace.competing(["red", "car", "lawn"])
    total = sum(np.asarray(heat) for heat in shares.values())
    np.testing.assert_allclose(total, 1, atol=1e-5)
    maps = {word: np.asarray(trace.heatmap(word)) for word in shares}
    want = maps["red"] / sum(maps.values())
    np.testing.assert_allclose(shares["red"], want, atol=1e-4)
    sharp = trace.competing(["red", "car", "lawn"], temperature=0.01)
    assert np.asarray(sharp["red"]).max() == pytest.approx(1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        trace.competing(temperature=0)
    with pytest.raises(ValueError, match="two words or more"):
        trace.competing(["red"])


def test_the_most_decided_layer_comes_first(trace: xattn.Trace) -> None:
    run = trace.run
    tensors = [run.maps(n).clone() for n in range(len(run.layers))]
    tensors[2][:] = 0
    tensors[2][:, :, :, 1] = 1  # all on one word
    tensors[1][:] = 0.1  # even
    told = xattn.Trace([replace(run, store=MemoryStore(tuple(tensors)))]).layer_entropies()
    names = [name for name, _ in told]
    assert names[0] == LAYERS[2].name
    assert names[-1] == LAYERS[1].name
    assert told.layers[0][1] == pytest.approx(0, abs=1e-6)
    assert told.layers[-1][1] == pytest.approx(1)
    assert told.to_json()[0] == {"layer": LAYERS[2].name, "entropy": 0.0}
    assert "1.000" in str(told)


def test_sums_above_one_are_divided(tmp_path: Path) -> None:
    tokens = torch.full((3, 2, 2), 0.5)
    shares = competition.word_shares(tokens, [[0], [1, 2]])[:, 0, 0]
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 2 / 3, 0]))
