"""Whether words are in a picture: evidence by hand, calibrated or said not to be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.tiny import transformers
from xattn.api.presence import content_words, presence_rows
from xattn.maps import presence
from xattn.toyland import calibration

PHOTO = Image.new("RGB", (16, 16), (200, 30, 40))


@pytest.fixture(scope="module")
def trace() -> xattn.Trace:
    return xattn.probe(
        tiny.sd1(), PHOTO, "a red car on the lawn", levels=(0.2, 0.6), seeds=2, also="boat",
        presence=True,
    )  # fmt: skip


def test_the_words_that_can_be_seen_are_asked(trace: xattn.Trace) -> None:
    assert content_words("a red car and the red lawn, at night") == ["red", "car", "lawn", "night"]
    found = trace.run.info["presence"]
    assert found["words"] == ["red", "car", "lawn", "boat"]
    assert found["text"] == ["red", "car", "lawn"]
    assert len(found["products"]) == len(found["along"]) == 4  # two levels, two noises each


@torch.no_grad()
def test_evidence_is_that_of_the_denoisers_calls_by_hand() -> None:
    """One call for each text at one level, compared with the clean latents."""
    seen: list[Any] = []
    pipe = tiny.sd1()
    hook = pipe.unet.register_forward_hook(lambda _m, given, made: seen.append((given, made)))
    asked = xattn.probe(pipe, PHOTO, "car", levels=0.6, seed=5, also="boat", presence=True)
    hook.remove()
    assert sum(len(given[0]) for given, _ in seen) == 1 + presence_rows(2, 1, 1)
    (sample, *_), (output, *_) = seen[-1]
    scheduler = pipe.scheduler
    alpha = scheduler.alphas_cumprod[600]
    estimates = (sample - (1 - alpha) ** 0.5 * output) / alpha**0.5
    pixels = pipe.image_processor.preprocess([asked.run.images[0]])
    clean = pipe.vae.encode(pixels).latent_dist.mode()[0] * pipe.vae.config.scaling_factor
    missed = (clean - estimates[0]).flatten()
    change = (estimates[1] - estimates[0]).flatten()
    found = asked.run.info["presence"]
    along = float(change @ missed / missed.square().sum())
    assert found["along"][0][0] == pytest.approx(along, rel=1e-3)
    own = float(change @ change / missed.square().sum())
    assert found["products"][0][0][0] == pytest.approx(own, rel=1e-3)


def test_asking_changes_no_map(trace: xattn.Trace) -> None:
    plain = xattn.probe(
        tiny.sd1(), PHOTO, "a red car on the lawn", levels=(0.2, 0.6), seeds=2, also="boat"
    )
    for n in range(len(plain.run.layers)):
        assert torch.equal(plain.run.maps(n), trace.run.maps(n))


def test_a_word_that_is_what_was_missing_counts_and_its_rival_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, plain = torch.randn(2, 4, 8, 8, generator=generator)
    missed = clean - plain
    other = torch.randn(4, 8, 8, generator=generator)
    told = torch.stack([plain + 0.5 * missed, plain + 0.5 * missed + other, plain - 0.1 * other])
    gram, along = presence.products(clean, plain, told)
    assert gram.shape == (3, 3)
    assert float(along[0]) == pytest.approx(0.5)
    joint, gain, _, angle = presence.features(gram[None], along[None]).unbind(1)
    assert joint.argmax() == gain.argmax() == angle.argmax() == 0
    assert float(gain[0]) == pytest.approx(1 - 0.25)  # the error falls to a quarter
    alone = presence.features(gram[None], along[None], [0])
    assert float(alone[0, 1]) == pytest.approx(0.75)


def test_a_model_nobody_calibrated_has_a_score(trace: xattn.Trace, tmp_path: Path) -> None:
    found = trace.presence("Boat")
    assert 0 <= found <= 1
    assert not found.calibrated
    assert "a score, not a probability" in str(found)
    assert pickle.loads(pickle.dumps(found)).word == "boat"
    trace.save(tmp_path / "trace.safetensors")
    assert xattn.load(tmp_path / "trace.safetensors").presence("boat") == found
    told = trace.verdict()
    assert told.kind in ("match", "partly", "mismatch")
    assert [float(each) for each in told] == sorted(map(float, told), reverse=True)
    assert {each.word for each in told} == {"red", "car", "lawn"}
    assert "not probabilities" in str(told)


def test_verdicts_go_by_how_many_words_are_there(
    trace: xattn.Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xattn.results import presence as results

    for values, kind, missing in (
        ((0.9, 0.8, 0.5), "match", ()),
        ((0.9, 0.2, 0.1), "partly", ("car", "lawn")),
        ((0.4, 0.2, 0.1), "mismatch", ("red", "car", "lawn")),
    ):
        known = {
            word: xattn.Presence(value, word, True)
            for word, value in zip(("red", "car", "lawn"), values, strict=True)
        }
        monkeypatch.setattr(results, "presences", lambda _run, known=known: known)
        assert trace.verdict().kind == kind
        assert trace.verdict().missing == missing


def test_a_calibrated_model_has_a_probability() -> None:
    known = calibration.Calibration((10, 0.5), (0.5,), (1.0, 0.0, 0.0, 2.0), -1.0)
    values = known.probability(torch.tensor([[1.0, 9.0, 9.0, 0.5], [0.0, 0.0, 0.0, 0.5]]))
    assert values.tolist() == pytest.approx([torch.tensor(1.0).sigmoid().item(), 0.5])
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 200)
    (count, size), (_, halved) = (calibration.fingerprint(m) for m in (model, model.half()))
    assert count == 200 * 301
    assert halved == pytest.approx(size, rel=2e-4)  # a tenth of what calibration_of lets pass
    assert calibration.calibration_of(None, (0.5,)) is None


def test_what_cannot_be_answered_is_said(trace: xattn.Trace) -> None:
    with pytest.raises(ValueError, match="'sky' was not asked for; that of these words was: red"):
        trace.presence("sky")
    plain = xattn.probe(tiny.sd1(), PHOTO, "a car", levels=0.5)
    with pytest.raises(ValueError, match="probe the picture with presence=True"):
        plain.presence("car")
    with pytest.raises(ValueError, match="has no word to look for"):
        xattn.probe(tiny.sd1(), PHOTO, "on the", levels=0.5, presence=True)


@pytest.mark.parametrize("build", [lambda: transformers.sd3(t5=False), transformers.flux])
def test_flows_are_asked_too(build: Any) -> None:
    pipe = build()
    asked = xattn.probe(pipe, PHOTO, "car", levels=0.5, also="boat", presence=True, batch=2)
    assert 0 <= asked.presence("boat") <= 1
