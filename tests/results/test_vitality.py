"""Vitality: layers passed over one by one, and how alike pictures are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.tiny import transformers
from xattn.api.vital import passed_over
from xattn.maps.similarity import structural_similarity
from xattn.models import family_of
from xattn.results.vitality import Vitality

NOISE = Image.effect_noise((32, 24), 60)
SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1}


def test_similarity_is_the_papers_formula() -> None:
    assert structural_similarity(NOISE, NOISE) == 1.0
    random = np.random.default_rng(0)
    one, two = random.random((11, 11)), random.random((11, 11))
    places = np.arange(11) - 5.0
    weights = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    weights /= weights.sum()  # pictures of the window's size have one window
    mean = [(weights * p).sum() for p in (one, two)]
    spread = [(weights * (p - m) ** 2).sum() for p, m in zip((one, two), mean, strict=True)]
    both = (weights * (one - mean[0]) * (two - mean[1])).sum()
    want = (2 * mean[0] * mean[1] + 1e-4) * (2 * both + 9e-4)
    want /= (mean[0] ** 2 + mean[1] ** 2 + 1e-4) * (sum(spread) + 9e-4)
    assert structural_similarity(one, two) == pytest.approx(want)
    assert structural_similarity(one, 1 - one) < 0
    with pytest.raises(ValueError, match="sizes differ"):
        structural_similarity(one, two[1:])


def test_results_name_the_layers_to_use(tmp_path: Any) -> None:
    values = np.array([[0.1, 0.2], [0.5, 0.7], [0.0, 0.0], [0.4, 0.4]])
    found = Vitality(("a.0", "a.1", "b.0", "b.1"), values, ("one", "two"))
    assert found.scores["a.1"] == pytest.approx(0.6)
    assert found.layers == ("a.1", "b.1")
    assert found.top(3) == ("a.0", "a.1", "b.1")
    assert found.above(0.5) == ("a.1",)
    rows = found.table().splitlines()
    assert [row.split()[0] for row in rows] == ["layer", "a.1", "b.1", "a.0", "b.0"]
    assert rows[1].split()[1:] == ["0.6000", "0.5000", "0.7000"]
    assert str(found) == found.table()
    picture = np.asarray(found.plot(400))
    lengths = (picture == (48, 80, 140)).all(-1).sum(1)
    assert picture.shape[1] == 400
    assert lengths.max() > 100
    with pytest.raises(ValueError, match="the most vital has"):
        found.above(0.9)
    with pytest.raises(ValueError, match="between 1 and 4 layers"):
        found.top(5)


@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_each_layer_is_passed_over_in_turn(kind: str) -> None:
    pipe = tiny.sd1() if kind == "unet" else transformers.flux()
    model = pipe.unet if kind == "unet" else pipe.transformer
    names = [layer.name for layer in family_of(model).layers(model)]
    options = SMALL | ({} if kind == "unet" else {"max_sequence_length": 8})
    moments: list[tuple[int, int]] = []
    chosen = names[:2]
    found = xattn.vital(
        pipe, ["a cat", "a dog"], layers=chosen, progress=lambda *m: moments.append(m), **options
    )
    assert found.names == tuple(chosen)
    assert found.values.shape == (2, 2)
    assert (found.values > 0).all()
    assert moments == [(1, 3), (2, 3), (3, 3)]
    assert not any(module._forward_hooks for module in model.modules())
    same = xattn.vital(pipe, "a cat", layers=chosen[0], similarity=lambda a, b: 1.0, **options)
    assert (same.values == 0).all()
    default = xattn.vital(pipe, "a cat", similarity=lambda a, b: 0.5, **options)
    assert default.names == tuple(name for name in names if not name.endswith("attn1"))
    with xattn.record(pipe, layers=default.top(1)):
        pass


def test_a_layer_passed_over_adds_nothing_and_comes_back() -> None:
    model = transformers.sd3_transformer(num_layers=1, dual_attention_layers=())
    (layer,) = family_of(model).layers(model)
    states = torch.ones(1, 4, 64), torch.ones(1, 3, 64)
    with torch.no_grad():
        before = layer.module(*states)
        with passed_over(layer):
            image, text = layer.module(*states)
        after = layer.module(*states)
    assert not image.any()
    assert not text.any()
    assert torch.equal(before[0], after[0])


def test_bad_input_is_refused_before_anything_is_drawn() -> None:
    pipe = tiny.sd1()
    for bad in ([], [3], 5):
        with pytest.raises((ValueError, TypeError)):
            xattn.vital(pipe, bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers='none' does not match any layer"):
        xattn.vital(pipe, layers="none")
    with pytest.raises(ValueError, match="stepps= is not an option"):
        xattn.vital(pipe, stepps=3)
