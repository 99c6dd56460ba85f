"""The keeper and what it keeps, alone: made-up runs, and no denoiser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.fakes import TOKENS, attention, call_of, sampling, schedule
from xattn.instruments.keeper import Fingerprint, Keeper, KeptSource
from xattn.models.family import AttentionLayer
from xattn.processors.call import AttentionCall
from xattn.processors.editing import KeptCalls
from xattn.session.clock import Schedule


class Attn(nn.Module):
    inner_dim = inner_kv_dim = 8


def attn(name: str, role: Any = "cross", **other: Any) -> AttentionLayer:
    return AttentionLayer(name, Attn(), 2, role, **other)


CROSS, OWN, FINE = attn("attn2"), attn("attn1", "self", depth=1), attn("fine.attn1", "self")
CONTROL = attn("controlnet.attn2", component="controlnet.")
LATENT = (32, 32)


def keeper(kept: KeptSource, prompts: int = 2) -> Keeper:
    made = Keeper(kept, prompts=prompts, tokens=TOKENS)
    assert list(made.handlers([CROSS, OWN, FINE, CONTROL])) == [CROSS, OWN, FINE]
    return made


def test_the_sources_queries_and_keys_of_every_call_are_kept() -> None:
    kept = KeptSource("a red car", 1)
    made, run = keeper(kept), sampling(("a red car", "a blue car"), latent=LATENT)
    made.begin(run)
    assert kept.timesteps == (30.0, 20.0, 10.0)
    calls = [attention(4, seed=number) for number in range(3)]
    for number, one in enumerate(calls):
        made.before_call(run, call_of(run, number))
        assert made.layers[CROSS].transform(one) is one
    made.end(run)
    assert sorted(kept.layers) == [OWN.name, CROSS.name]  # the fine one follows no source
    assert not made.layers[FINE].live
    for one, (query, key) in zip(calls, kept.of_layer(CROSS.name, None), strict=True):
        assert torch.equal(query, one.query[2:3])  # negative, negative, source, sibling
        assert torch.equal(key, one.key[2:3])


def test_kept_numbers_are_copies_without_gradients() -> None:
    kept = KeptSource("a red car", 1)
    made, run, one = keeper(kept), sampling(("a", "b"), latent=LATENT), attention(4)
    made.begin(run)
    made.before_call(run, call_of(run))
    made.layers[CROSS].transform(
        AttentionCall(one.query.requires_grad_(), one.key, one.value, None, 0.5, one.own)
    )
    ((query, key),) = kept.layers[CROSS.name]
    before = key.clone()
    one.key.zero_()
    assert torch.equal(key, before)
    assert not query.requires_grad


def test_keys_that_stay_the_same_are_stored_once() -> None:
    key, other = torch.ones(1, 2, 6, 4), torch.zeros(1, 2, 6, 4)
    calls = [(torch.full((1, 2, 4, 4), float(n)), key.clone()) for n in range(3)]
    kept = KeptSource("a red car", 1, layers={"attn2": [*calls, (torch.ones(1, 2, 4, 4), other)]})
    assert kept.nbytes == 4 * (4 * 32 + 4 * 48)
    kept.share_keys(["attn2", "absent"])
    assert kept.nbytes == 4 * (4 * 32 + 2 * 48)
    keys = [key for _, key in kept.layers["attn2"]]
    assert keys[0] is keys[1] is keys[2]
    assert torch.equal(keys[3], other)


def test_what_would_not_fit_is_refused_before_the_first_step() -> None:
    endless = Schedule(steps=(0,) * 10**6, timesteps=(9.0,) * 10**6, at=(9.0,) * 10**6)
    made = keeper(KeptSource("a red car", 1))
    with pytest.raises(MemoryError, match=r"keeping the source takes .* fewer steps or images"):
        made.begin(sampling(("a", "b"), latent=(64, 64), schedule=endless))


def test_masked_or_explicit_attention_can_not_be_kept() -> None:
    one = attention()
    query, key = one.query[:1], one.key[:1]
    kept = KeptCalls([(query, key)])
    assert torch.equal(kept.read(one)[0], query)
    with pytest.raises(RuntimeError, match="with masked attention"):
        kept.read(attention(mask=torch.zeros(1, 1, 1, TOKENS)))
    with pytest.raises(RuntimeError, match="computes explicit probabilities"):
        kept.read(attention(own=None))


def test_another_schedule_is_not_the_sources() -> None:
    kept = KeptSource("a red car", 1, timesteps=(30.0, 20.0))
    kept.check_schedule(schedule(30.0, 20.0))
    with pytest.raises(ValueError, match=r"in 2 denoiser calls from timestep 30 .* 2 from 40"):
        kept.check_schedule(schedule(40.0, 20.0))


# -- what a source was drawn by --------------------------------------------------------------------


class UNet2DConditionModel(nn.Module):
    dtype = torch.float32


class DDIM:
    def __init__(self, **config: Any) -> None:
        self.config = config


class Other(DDIM):
    pass


class Pipe(SimpleNamespace):
    encode_prompt = len


class Img2Img(Pipe):
    pass


def test_a_source_fits_only_what_it_was_drawn_by() -> None:
    unet = UNet2DConditionModel()
    pipe = Pipe(unet=unet, scheduler=DDIM(steps=1, _private=2))
    drawn = Fingerprint.of(pipe)
    drawn.check(Pipe(unet=unet, scheduler=DDIM(steps=1, _private=3)))
    half = UNet2DConditionModel()
    cases = {
        "by a Pipe, and this is a Img2Img": Img2Img(unet=unet, scheduler=pipe.scheduler),
        "by another UNet": Pipe(unet=half, scheduler=pipe.scheduler),
        "with DDIM, and the pipeline has Other": Pipe(unet=unet, scheduler=Other(steps=1)),
        "with another steps of the scheduler": Pipe(unet=unet, scheduler=DDIM(steps=2)),
    }
    for message, other in cases.items():
        with pytest.raises(ValueError, match=f"^source was drawn {message}: draw it again"):
            drawn.check(other)
    unet.dtype = torch.float16
    with pytest.raises(ValueError, match=r"in torch\.float32, .* now in torch\.float16"):
        drawn.check(pipe)
