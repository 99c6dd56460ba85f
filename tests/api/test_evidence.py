"""The concepts' form of evidence: gains by hand, maps raised by them, kept in files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.tiny import transformers
from xattn.maps.evidence import gains, raised

PHOTO = Image.new("RGB", (64, 64), (200, 30, 40))


def test_a_gain_is_the_fall_of_the_squared_error_in_each_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, plain = torch.randn(2, 4, 6, 5, generator=generator)
    told = torch.randn(3, 4, 6, 5, generator=generator)
    before, after = (clean - plain) ** 2, (clean - told) ** 2
    expected = (before.sum(0) - after.sum(1)) / before.sum()
    assert gains(clean, plain, told) == pytest.approx(expected.numpy(), abs=1e-6)


def test_maps_are_raised_up_to_twice_where_the_gain_is_largest() -> None:
    maps = torch.full((2, 16, 16), 0.5)
    gain = torch.full((2, 16, 16), -1.0)
    gain[0, 4, 4] = 100.0
    first, second = raised(maps, gain)
    assert float(first[4, 4]) == pytest.approx(2, abs=1e-5)
    assert float(first[12, 12]) == pytest.approx(1, abs=1e-5)
    assert torch.equal(second, torch.ones(16, 16))  # nothing gained, nothing changed


@pytest.mark.parametrize(
    ("make", "base"), [(tiny.sd1, "competition"), (transformers.sd3, "output")]
)
def test_evidence_is_the_default_of_a_probe_that_has_it(
    make: object, base: str, tmp_path: Path
) -> None:
    assert callable(make)
    options = {"levels": (0.3, 0.6, 0.9), "also": ["boat", "sky"]}
    plain = xattn.probe(make(), PHOTO, "", **options)
    trace = xattn.probe(make(), PHOTO, "", presence=True, **options)
    assert list(plain.run.concepts) == ["attention", base]
    assert trace.concepts().form == "evidence"
    under, found = trace.concepts(form=base), trace.concepts()
    kept = trace.run.concepts["evidence"]
    own = (kept.maps(0) - kept.maps(1))[:2, 0, 0].mean(0)  # the noisier half
    assert (own < 0).any()
    read = torch.stack([torch.tensor(under[name].array) for name in ("boat", "sky")])
    assert torch.equal(
        read, torch.stack([torch.tensor(h.array) for h in plain.concepts().values()])
    )
    assert found["sky"].array == pytest.approx(raised(read, own)[1].numpy(), abs=1e-6)
    trace.save(tmp_path / "trace.safetensors")
    again = xattn.load(tmp_path / "trace.safetensors").concepts(["boat", "sky"])
    assert again.form == "evidence"
    assert (again["boat"].array == found["boat"].array).all()
    assert trace.concepts(["boat", "background"]).form == base  # which has no gain of its own
    with pytest.raises(ValueError, match="'background' was not asked for"):
        trace.concepts("background", form="evidence")
