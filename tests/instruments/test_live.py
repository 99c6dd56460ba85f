"""Maps with gradients, held to a softmax with every probability written out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import xattn
from tests import tiny
from tests.tiny import transformers
from xattn.processors.wrapping import is_wrapped

PROMPT = "a red car"


class Dense(TorchFunctionMode):
    """Write out every softmax of a model, and keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.probs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3] if args else (kwargs[n] for n in ("query", "key", "value"))
        probs = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        self.probs.append(probs)
        return probs @ value


def unet_case() -> Any:
    pipe = tiny.sd1()
    states = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    return SimpleNamespace(
        model=pipe.unet,
        tokenizer=pipe.tokenizer,
        sample=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        call=lambda model, x: model(x, 500, states).sample,
        # cross-attention has the text's keys alone
        columns=lambda probs: probs[0, :, :, 2:3] if probs.shape[-1] == 77 else None,
        word="red",
        pipe=pipe,
    )


def sd3_case() -> Any:
    pipe = transformers.sd3(t5=False)
    states, _, pooled, _ = pipe.encode_prompt(
        PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=1
    )
    states = states[:, :77]
    image = 4 * 3
    return SimpleNamespace(
        model=pipe.transformer,
        tokenizer=[pipe.tokenizer, pipe.tokenizer_2],
        sample=torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(0)),
        call=lambda model, x: model(x, states, pooled, torch.tensor([500.0])).sample,
        columns=lambda probs: (
            probs[0, :, :image, image + 2 : image + 3] if probs.shape[-1] > image else None
        ),
        word="red",
        pipe=pipe,
    )


def loss_of(maps: list[Tensor]) -> Tensor:
    """A number that depends on every cell of every map, whatever the order of the layers."""
    return torch.stack([(m * torch.linspace(1, 2, m.numel())).sum() for m in maps]).sum()


@pytest.fixture(params=[unet_case, sd3_case], scope="module")
def case(request: Any) -> Any:
    return request.param()


def test_gradients_equal_those_of_the_dense_softmax(case: Any) -> None:
    x = case.sample.clone().requires_grad_()
    mode = Dense()
    with mode:
        case.call(case.model, x)
    columns = [case.columns(probs) for probs in mode.probs]
    want = loss_of([c.mean(0).flatten() for c in columns if c is not None])
    (want_gradient,) = torch.autograd.grad(want, x)

    y = case.sample.clone().requires_grad_()
    with xattn.live(
        case.model, tokenizer=case.tokenizer, prompt=PROMPT, words=case.word, layers="*"
    ) as maps:
        case.call(case.model, y)
        got = loss_of([m.flatten() for m in maps.layers(case.word).values()])
        (got_gradient,) = torch.autograd.grad(got, y)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    scale = want_gradient.abs().max()
    assert scale > 1e-4
    torch.testing.assert_close(got_gradient / scale, want_gradient / scale, rtol=0, atol=1e-5)


def test_the_output_is_the_model_s_own_and_nothing_stays(case: Any) -> None:
    with torch.no_grad():
        want = case.call(case.model, case.sample)
    with xattn.live(case.pipe, prompt=PROMPT) as maps:
        got = case.call(case.model, case.sample.clone().requires_grad_())
        assert maps["red"].shape == (1, *case.sample.shape[-2:])
        assert maps["red"].requires_grad
        assert maps.nbytes > 0
        assert maps.words == ("a", "red", "car")
    assert torch.equal(got, want)
    assert not any(is_wrapped(m.processor) for m in case.model.modules() if hasattr(m, "processor"))


def test_flux_has_live_maps_of_packed_latents() -> None:
    pipe = transformers.flux()
    with xattn.live(pipe, prompt=PROMPT, words=["red"]) as maps:
        pipe(PROMPT, num_inference_steps=1, height=32, width=32, max_sequence_length=16,
             output_type="latent")  # fmt: skip
    assert maps["red"].shape[0] == 1
    assert maps["red"].min() >= 0


def checkpointed(unet: Any) -> Any:
    unet.enable_gradient_checkpointing()
    return unet.train()


def gradient(unet: Any, states: Tensor, prepare: Callable[[Any], Any]) -> Tensor:
    """The gradient of two words' maps in a weight of the text's keys."""
    model = prepare(unet)
    model.zero_grad()
    sample = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with xattn.live(
        model, tokenizer=tiny.tokenizer(), prompt=[PROMPT, "a red boat"], words=["red"]
    ) as maps:
        model(sample, torch.tensor([500, 300]), states)
        (maps["red"] ** 2).sum().backward()
    weight = model.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
    assert weight.grad is not None
    return weight.grad.clone()


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    pipe = tiny.sd1()
    states = pipe.encode_prompt([PROMPT, "a red boat"], "cpu", 1, False)[0].detach()
    plain = gradient(pipe.unet, states, lambda unet: unet.train())
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradient(pipe.unet, states, checkpointed), plain)


def test_maps_of_half_precision_are_float32() -> None:
    pipe = tiny.sd1()
    states = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0].bfloat16().detach()
    pipe.unet.bfloat16()
    sample = torch.zeros(1, 4, 16, 16, dtype=torch.bfloat16).requires_grad_()
    with xattn.live(pipe, prompt=PROMPT) as maps:
        pipe.unet(sample, 500, states)
        assert maps["car"].dtype == torch.float32
        maps["car"].sum().backward()
    assert sample.grad is not None
    assert sample.grad.abs().max() > 0


def test_a_batch_has_its_own_words_and_its_second_half_follows_the_prompts() -> None:
    pipe = tiny.sd1()
    texts = [PROMPT, "a boat"]
    positive, negative = pipe.encode_prompt(texts, "cpu", 1, True)[:2]
    x = torch.randn(4, 4, 16, 16)
    with torch.no_grad(), xattn.live(pipe, prompt=texts) as maps:
        pipe.unet(x, 500, torch.cat([negative, positive]))
        whole = maps["a"]
    assert whole.shape == (2, 16, 16)
    with torch.no_grad(), xattn.live(pipe, prompt="a boat") as maps:
        pipe.unet(x[3:], 500, positive[1:])
    torch.testing.assert_close(maps["a"][0], whole[1])


def test_wrong_asks_are_sentences(sd1: Any) -> None:
    pipe = sd1
    states = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with pytest.raises(ValueError, match="a bare denoiser needs tokenizer="):
        xattn.live(pipe.unet, prompt=PROMPT).__enter__()
    with xattn.live(pipe, prompt=PROMPT, words="car") as maps, torch.no_grad():
        with pytest.raises(RuntimeError, match="there are no maps yet"):
            maps["car"]
        pipe.unet(torch.zeros(1, 4, 16, 16), 1, states)
        with pytest.raises(xattn.WordError, match="none of the words to keep"):
            maps["red"]
    with (
        xattn.live(pipe, prompt=PROMPT, words="boat"),
        pytest.raises(ValueError, match="'boat' is not in the prompt"),
    ):
        pipe.unet(torch.zeros(1, 4, 16, 16), 1, states)
    with (
        xattn.live(pipe, prompt=[PROMPT] * 2),
        pytest.raises(RuntimeError, match="3 rows follow the prompts"),
    ):
        pipe.unet(torch.zeros(3, 4, 16, 16), 1, states.repeat(3, 1, 1))


def test_maps_without_room_are_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    from xattn.records import room

    monkeypatch.setattr(room, "free_bytes", lambda *_: (10, "this machine's memory"))
    pipe = tiny.sd1()
    states = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with (
        xattn.live(pipe, prompt=PROMPT),
        pytest.raises(MemoryError, match=r"maps with gradients keep .* name fewer words="),
    ):
        pipe.unet(torch.zeros(1, 4, 16, 16), 1, states)
