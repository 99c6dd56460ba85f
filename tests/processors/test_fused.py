"""Maps beside PyTorch's fused attention: the model's own output, and the exact probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import BaseTorchFunctionMode

from xattn.processors.chain import Chain
from xattn.processors.own_call import OwnCall
from xattn.processors.probabilities import fused_attention, kept_maps, kept_probs
from xattn.processors.recording import Recording
from xattn.processors.wrapping import wrap

SCALE = 0.3


def parts(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return a query, key and value laid out as a layer's projections are."""
    random = torch.Generator().manual_seed(0)
    shapes = ((2, 64, 4, 16), (2, 77, 4, 16), (2, 77, 4, 16))
    drawn = [torch.randn(shape, generator=random) * 2 for shape in shapes]
    query, key, value = (t.to(dtype).transpose(1, 2) for t in drawn)
    return query, key, value


def own_call(**extra: Any) -> OwnCall:
    return OwnCall({"dropout_p": 0.0, "is_causal": False, "scale": SCALE} | extra)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [slice(1, 8), torch.tensor([2, 5, 70])], ids=["slice", "some"])
def test_fused_maps_are_the_probabilities(dtype: torch.dtype, tokens: Any) -> None:
    query, key, value = parts(dtype)
    fused = fused_attention(query, key, value, None, own_call())
    if fused is None:
        pytest.skip("this PyTorch chooses another kernel here")
    output, sums = fused
    assert torch.equal(output, F.scaled_dot_product_attention(query, key, value, scale=SCALE))
    wanted = kept_probs(query, key, None, SCALE, tokens).transpose(-1, -2)
    tight: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-4}
    torch.testing.assert_close(kept_maps(query, key, SCALE, sums, tokens), wanted, **tight)


def test_fused_maps_of_all_tokens_sum_to_one() -> None:
    query, key, value = parts()
    fused = fused_attention(query, key, value, None, own_call())
    assert fused is not None
    total = kept_maps(query, key, SCALE, fused[1], slice(None)).sum(2)
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("shared", [2, 4], ids=["two heads share", "each has its own"])
def test_heads_that_share_keys_see_them_repeated_and_the_output_is_the_models(shared: int) -> None:
    query, key, value = parts()
    key, value, heads = key[:, :shared], value[:, :shared], query.shape[1]
    plain = F.scaled_dot_product_attention(query, key, value, scale=SCALE, enable_gqa=True)
    own = own_call()
    repeated = own.repeated(key, value, heads)
    assert torch.equal(own(query, *repeated, None), plain)
    fused = fused_attention(query, *repeated, None, own)
    assert fused is None or torch.equal(fused[0], plain)
    halved = value.repeat_interleave(heads // shared, 1) * 0.5  # what a handler changed
    torch.testing.assert_close(own(query, repeated[0], halved, None), plain * 0.5)


def test_nothing_is_fused_where_pytorch_would_compute_otherwise_or_be_watched() -> None:
    query, key, value = parts()
    usual = (query, key, value, None)
    assert fused_attention(*usual, own_call()) is not None
    assert fused_attention(*usual, own_call(dropout_p=0.1)) is None
    assert fused_attention(*usual, own_call(is_causal=True)) is None
    assert fused_attention(*usual, lambda *a: F.scaled_dot_product_attention(*a)) is None
    with torch.autocast("cpu"):
        assert fused_attention(*usual, own_call()) is None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert fused_attention(*usual, own_call()) is None
    with BaseTorchFunctionMode():
        assert fused_attention(*usual, own_call()) is None


class Subclass(AttnProcessor2_0):
    """Goes the general way."""


@pytest.mark.parametrize("kind", [AttnProcessor2_0, Subclass, AttnProcessor])
def test_the_ways_into_a_layer_give_the_same_output_and_maps(kind: Any) -> None:
    torch.manual_seed(0)
    attn = Attention(32, 48, heads=4, dim_head=8).eval()
    attn.set_processor(kind())
    hidden, text = torch.randn(2, 64, 32), torch.randn(2, 77, 48)
    with torch.no_grad():
        plain = attn(hidden, encoder_hidden_states=text)
        recording = Recording("layer", 4)
        recording.rows, recording.tokens = (slice(1, 2),), slice(0, 77)
        recording.buffer = torch.zeros(1, 1, 77, 8, 8)
        recording.batch, recording.images = 2, 1
        recording.live = True
        chain = Chain("layer", 4, [recording])
        chain.wake()
        attn.processor = wrap(attn.processor, chain)
        assert torch.equal(attn(hidden, encoder_hidden_states=text), plain)
    query = attn.head_to_batch_dim(attn.to_q(hidden[1:]))
    key = attn.head_to_batch_dim(attn.to_k(text[1:]))
    wanted = attn.get_attention_scores(query, key).mean(0).T.unflatten(-1, (8, 8))
    torch.testing.assert_close(recording.buffer[0, 0], wanted.detach(), atol=1e-6, rtol=1e-4)
