"""Sanity of maps and saliency of places, on a tiny model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from tests.helpers import assert_restored, picture
from xattn.attribution.sanity import rank_correlation
from xattn.attribution.weights import shuffled_weights
from xattn.results.difference import Difference
from xattn.results.sanity import Sanity

PROMPT = "a red car"
SMALL = (16, 16)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def trace(pipe: Any) -> xattn.Trace:
    return xattn.probe(pipe, picture(16, 16), PROMPT, levels=0.5, size=SMALL)


def test_a_words_map_is_compared_with_its_own_and_with_others(
    pipe: Any, trace: xattn.Trace
) -> None:
    before = dict(pipe.unet.attn_processors)
    weights = {name: each.clone() for name, each in pipe.unet.state_dict().items()}
    found = xattn.sanity(
        pipe, trace, "red", strangers=("boat", "cat"), noises=2, shuffles=3, levels=(0.5,)
    )
    assert (len(found.again), len(found.absent), len(found.place), len(found.moved)) == (2, 2, 3, 3)
    assert list(found.weights) == [0.25, 0.5, 0.75, 1.0]
    other = xattn.probe(pipe, picture(16, 16), "a boat car", levels=0.5, size=SMALL)
    maps = (np.asarray(trace.heatmap("red")), np.asarray(other.heatmap("boat")))
    assert found.absent[0] == pytest.approx(rank_correlation(*maps), abs=0.02)
    assert "comes out again" in str(found)
    assert found.plot().width >= 640
    assert_restored(pipe, before)
    assert all(torch.equal(each, weights[name]) for name, each in pipe.unet.state_dict().items())


def test_a_grounded_map_stands_out_of_its_null_distribution() -> None:
    low, high = np.array([0.1, 0.3, 0.2]), np.array([0.9, 0.8])
    found = Sanity("red", high, low, low, high, {1.0: 0.0})
    assert found.number == pytest.approx(0.85)
    assert found.p == pytest.approx(1 / 7)
    assert Sanity("red", low, high, high, low, {}).p == 1.0
    assert "0 of 6 such maps" in str(found)


def test_shuffled_weights_keep_their_values_and_come_back() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 5))
    first, last = (each.weight.detach().clone() for each in model)
    with shuffled_weights(model, 0.5):
        assert torch.equal(model[0].weight, first)
        assert not torch.equal(model[1].weight, last)
        assert torch.equal(model[1].weight.flatten().sort()[0], last.flatten().sort()[0])
    assert torch.equal(model[1].weight, last)


def test_rank_correlation_is_spearmans() -> None:
    one = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert rank_correlation(one, one**3) == pytest.approx(1.0)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one, np.zeros((2, 2))) == 0.0


@pytest.mark.parametrize("by", ["patches", "gradient"])
def test_saliency_is_what_the_score_loses_without_a_place(
    pipe: Any, trace: xattn.Trace, by: str
) -> None:
    found = np.asarray(xattn.saliency(pipe, trace, "red", by=by, patch=4, level=0.5))
    assert found.shape == (8, 8)
    assert np.abs(found).max() > 0
    if by == "gradient":
        assert found.min() >= 0
        return
    for y in (0, 4):
        assert len(set(found[y : y + 4, :4].ravel().tolist())) == 1  # a patch has one number
    clean = pipe.vae.encode(pipe.image_processor.preprocess(picture(16, 16))).latent_dist.mode()
    clean = clean.detach() * pipe.vae.config.scaling_factor
    covered = clean.clone()
    covered[..., :4, 4:] = clean.mean((-2, -1), keepdim=True)
    wanted = _score(pipe, clean) - _score(pipe, covered)
    assert found[0, 5] == pytest.approx(wanted, rel=1e-2)


def test_what_was_asked_before_an_interruption_is_not_asked_again(
    pipe: Any, trace: xattn.Trace, tmp_path: Path
) -> None:
    rows: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda _, args, out: rows.append(len(out[0])))
    few = {"noises": 1, "shuffles": 1, "levels": (0.5,), "strangers": ["zebra", "boat"]}
    for call, counts in (
        (lambda: xattn.saliency(pipe, trace, "red", patch=4, batch=2, cache=tmp_path), (10, 6)),
        (lambda: xattn.sanity(pipe, trace, "red", cache=tmp_path, **few), (10, 2)),
    ):
        found, asked = [], []
        for left in (1, 0):
            rows.clear()
            found.append(call())
            asked.append(sum(rows))
            for file in sorted(tmp_path.rglob("*.safetensors"))[:left]:
                file.unlink()  # as if interrupted
        assert tuple(asked) == counts
        if isinstance(found[0], Difference):
            np.testing.assert_allclose(np.asarray(found[0]), np.asarray(found[1]), rtol=1e-4)
        else:
            assert found[0].null == pytest.approx(found[1].null)
        shutil.rmtree(tmp_path)
    hook.remove()


@torch.no_grad()
def _score(pipe: Any, clean: Any) -> float:
    ids = pipe.tokenizer([PROMPT, "a car"], padding="max_length", return_tensors="pt").input_ids
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    alpha = float(pipe.scheduler.alphas_cumprod[500])
    noised = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    predicted = pipe.unet(noised.expand(2, -1, -1, -1), 500, pipe.text_encoder(ids)[0]).sample
    return float(((predicted[0] - predicted[1]) ** 2).mean()) * (1 - alpha) / alpha


def test_what_makes_no_sense_is_refused(pipe: Any, trace: xattn.Trace) -> None:
    with pytest.raises(ValueError, match="comes 0 times"):
        xattn.sanity(pipe, trace, "boat")
    with pytest.raises(ValueError, match="aren't in"):
        xattn.sanity(pipe, trace, "red", strangers=("car",))
    with pytest.raises(ValueError, match="'patches' or 'gradient'"):
        xattn.saliency(pipe, trace, "red", by="magic")
