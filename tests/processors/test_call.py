"""One attention call alone: its probabilities against a dense softmax, and who sees which call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.fakes import Doubling, Watching, attention, dense, own
from xattn.processors.call import AttentionCall, Place, ScoresCall
from xattn.processors.chain import Chain
from xattn.processors.wrapping import Interception

KEYS, QUERIES = 6, 4
ALL = slice(None)


def bools(*shape: int) -> Tensor:
    """A mask that leaves every query its first key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    return mask


def numbers(*shape: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


SHAPES = [
    (QUERIES, KEYS),
    (1, KEYS),
    (1, 1, 1, KEYS),
    (2, 1, 1, KEYS),
    (1, 2, QUERIES, KEYS),
    (2, 2, QUERIES, KEYS),
]
MASKS = [None, *(make(*shape) for make in (bools, numbers) for shape in SHAPES)]
every_mask = pytest.mark.parametrize(
    "mask", MASKS, ids=lambda m: "none" if m is None else f"{m.dtype} {tuple(m.shape)}"
)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


# -- all keys are the text's -----------------------------------------------------------------------


@pytest.mark.parametrize("summed", [False, True], ids=["softmax", "sums"])
@every_mask
def test_probabilities_are_the_dense_softmax(mask: Any, summed: bool) -> None:
    with torch.no_grad():
        call = attention(mask=mask)
        if summed:
            call.prepare()
        close(call.probabilities(ALL), dense(call))
        call = attention(mask=mask)
        close(call.probabilities(slice(1, 2)), dense(call)[1:])


@pytest.mark.parametrize("summed", [False, True], ids=["softmax", "sums"])
@pytest.mark.parametrize(
    "tokens", [ALL, slice(1, 4), slice(2, None), torch.tensor([5, 0, 3])], ids=str
)
@every_mask
def test_maps_are_the_columns_of_some_tokens(mask: Any, tokens: Any, summed: bool) -> None:
    with torch.no_grad():
        call = attention(mask=mask)
        if summed:
            call.prepare()
        want = dense(call)[1:][..., tokens].transpose(-1, -2)
        assert call.maps(slice(1, 2), tokens).shape == want.shape
        close(call.maps(slice(1, 2), tokens), want)


@every_mask
def test_the_output_is_the_models_own(mask: Any) -> None:
    with torch.no_grad():
        call = attention(mask=mask)
        want = F.scaled_dot_product_attention(
            call.query, call.key, call.value, attn_mask=mask, scale=0.5
        )
        assert torch.equal(call.output(), want)
        assert call.output() is call.output()  # made once


def test_probabilities_are_computed_once() -> None:
    call = attention()
    with torch.no_grad():
        whole = call.probabilities(ALL)
        assert call.probabilities(ALL) is whole
        assert call.maps(ALL, slice(1, 3)).data_ptr() == whole[..., 1:].data_ptr()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_inputs_have_a_softmax_in_float32(dtype: torch.dtype) -> None:
    call = attention()
    query, key, value = (t.to(dtype) for t in (call.query, call.key, call.value))
    narrow = AttentionCall(query, key, value, None, 0.5, own())
    wide = AttentionCall(query.float(), key.float(), value.float(), None, 0.5, own())
    assert narrow.probabilities(ALL).dtype == torch.float32
    close(narrow.probabilities(ALL), dense(wide))


@every_mask
def test_gradients_of_maps_are_those_of_the_dense_softmax(mask: Any) -> None:
    def gradient(maps: Callable[[AttentionCall], Tensor]) -> list[Tensor]:
        call = attention(mask=mask)
        inputs = [call.query.requires_grad_(), call.key.requires_grad_()]
        call.prepare()
        weights = torch.arange(float(QUERIES))
        return list(torch.autograd.grad((maps(call) * weights).sum(), inputs))

    got = gradient(lambda call: call.maps(slice(1, 2), slice(1, 4)))
    want = gradient(lambda call: dense(call)[1:, ..., 1:4].transpose(-1, -2))
    for one, two in zip(got, want, strict=True):
        assert two.abs().max() > 0.01
        close(one, two)


def test_what_was_made_without_gradients_is_made_again_with_them() -> None:
    call = attention()
    call.query.requires_grad_()
    with torch.no_grad():
        assert not call.maps(ALL, ALL).requires_grad
    assert call.maps(ALL, ALL).requires_grad


# -- text and image in one softmax -----------------------------------------------------------------

TEXT_FIRST = Place(queries=slice(3, 7), text=slice(0, 3), image=slice(3, 7))
IMAGE_FIRST = Place(queries=slice(0, 4), text=slice(4, 7), image=slice(0, 4))
SCATTERED = Place(queries=slice(0, 4), text=torch.tensor([6, 4, 5]), image=slice(0, 4))
LAYOUTS = {
    "text first": (TEXT_FIRST, TEXT_FIRST),
    "image first": (IMAGE_FIRST, IMAGE_FIRST),
    "ragged rows": (TEXT_FIRST, IMAGE_FIRST),
    "scattered": (SCATTERED, SCATTERED),
    "ragged and scattered": (IMAGE_FIRST, SCATTERED),
}
JOINT_MASKS = [None, bools(1, 1, 7, 7), numbers(2, 1, 1, 7), numbers(7, 7), bools(7, 7)]


@pytest.mark.parametrize("grad", [False, True], ids=["sums", "with gradients"])
@pytest.mark.parametrize("mask", JOINT_MASKS, ids=["", "bool", "additive", "square", "square bool"])
@pytest.mark.parametrize("tokens", [ALL, slice(1, 3), torch.tensor([2, 0])], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_joint_maps_are_the_images_shares_of_the_text(
    layout: str, tokens: Any, mask: Any, grad: bool
) -> None:
    places = LAYOUTS[layout]
    with torch.set_grad_enabled(grad):
        call = attention(queries=7, keys=7, mask=mask, locate=lambda queries, keys: places)
        call.prepare()
        got = call.maps(ALL, tokens)
    probs = dense(call)
    for row, place in enumerate(places):
        text = torch.arange(7)[place.text][tokens]
        want = probs[row, :, place.queries][..., text].transpose(-1, -2)
        close(got[row], want)
    close(call.maps(slice(1, 2), tokens), got[1:])


def test_places_are_asked_for_with_the_calls_own_lengths() -> None:
    asked: list[tuple[int, int]] = []

    def locate(queries: int, keys: int) -> None:
        asked.append((queries, keys))

    call = attention(queries=5, keys=7, locate=locate)
    assert call.places is None
    assert asked == [(5, 7)]
    assert call.maps(ALL, ALL).shape == (2, 2, 7, 5)


# -- explicit and sliced processors ----------------------------------------------------------------


def flat(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
    mask = None if call.mask is None else call.mask.flatten(0, 1)
    return call.query.flatten(0, 1), call.key.flatten(0, 1), mask


def scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    logits = query @ key.transpose(-1, -2) * 0.5
    return (logits if mask is None else logits + mask).softmax(-1)


@pytest.mark.parametrize("mask", [None, numbers(2, 2, QUERIES, KEYS)], ids=["", "masked"])
def test_an_explicit_processors_call_has_the_same_probabilities(mask: Any) -> None:
    call = attention(mask=mask)
    explicit = ScoresCall(*flat(call), 0.5, 2, scores)
    close(explicit.scores().unflatten(0, (2, 2)), dense(call))
    close(explicit.probabilities(ALL), dense(call))
    close(explicit.maps(slice(1, 2), slice(1, 3)), dense(call)[1:, ..., 1:3].transpose(-1, -2))
    with pytest.raises(TypeError, match=r"call scores\(\)"):
        explicit.output()
    with pytest.raises(TypeError, match="does not compute explicit"):
        call.scores()


@pytest.mark.parametrize("mask", [None, numbers(2, 2, QUERIES, KEYS)], ids=["", "masked"])
@pytest.mark.parametrize("rows", [1, 3])
def test_sliced_parts_are_handed_over_together(rows: int, mask: Any) -> None:
    call, watching = attention(mask=mask), Watching()
    chain = awake(watching)
    query, key, whole = flat(call)
    given = []
    for start in range(0, len(query), rows):
        assert not watching.calls
        span = slice(start, start + rows)
        part = None if whole is None else whole[span]
        given.append(chain.scores(query[span], key[span], part, 0.5, 2, scores))
    close(torch.cat(given).unflatten(0, (2, 2)), dense(call))
    (seen,) = watching.calls
    close(seen.probabilities(ALL), dense(call))


def test_sliced_parts_of_an_interrupted_call_are_forgotten() -> None:
    call, watching = attention(), Watching()
    chain = awake(watching)
    query, key, _ = flat(call)
    chain.scores(query[:2] + 9, key[:2], None, 0.5, 2, scores)
    chain.opened()
    for span in (slice(0, 2), slice(2, 4)):
        chain.scores(query[span], key[span], None, 0.5, 2, scores)
    (seen,) = watching.calls
    assert torch.equal(seen.query, call.query)


def test_sliced_parts_can_not_be_edited() -> None:
    chain = awake(Doubling())
    query, key, _ = flat(attention())
    with pytest.raises(TypeError, match="slice by slice"):
        chain.scores(query[:2], key[:2], None, 0.5, 2, scores)


# -- chains ----------------------------------------------------------------------------------------


def awake(*handlers: Any, nth: int = 0) -> Chain:
    chain = Chain("attn", 2, handlers, nth)
    for handler in handlers:
        handler.live = True
    chain.wake()
    return chain


def test_what_stands_later_sees_what_is_in_effect() -> None:
    before, after, call = Watching(), Watching(), attention()
    output = awake(before, Doubling(), after).attend(call)
    assert before.calls == [call]
    (seen,) = after.calls
    assert torch.equal(seen.query, 2 * call.query)
    assert output is seen.output()
    close(seen.probabilities(ALL), dense(seen))


def test_handlers_that_are_not_live_are_passed_over() -> None:
    before, edit, after, call = Watching(), Doubling(), Watching(), attention()
    chain = awake(before, edit, after)
    edit.live = before.live = False
    chain.wake()
    assert chain.live
    assert chain.attend(call) is call.output()
    assert (before.calls, after.calls) == ([], [call])
    assert not chain.edits
    chain.sleep()
    assert not any((chain.live, after.live, after.seen))


def test_a_chain_is_blind_until_every_live_handler_saw_the_call() -> None:
    chain = awake(Watching(), Watching())
    assert chain.blind
    chain.attend(attention())
    assert not chain.blind
    chain.handlers[0].seen = False
    assert chain.blind
    chain.handlers[0].live = False
    assert not chain.blind


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_the_nth_attention_call_of_a_layer_is_handed_over(nth: int) -> None:
    watching = Watching()
    calls = [attention(seed=seed) for seed in range(3)]
    with Interception(awake(watching, nth=nth)):
        for call in calls:
            output = F.scaled_dot_product_attention(call.query, call.key, call.value, scale=0.5)
            want = dense(call) @ call.value
            torch.testing.assert_close(output, want, atol=1e-5, rtol=1e-5)
    (seen,) = watching.calls
    assert torch.equal(seen.query, calls[nth].query)


def test_a_call_knows_what_the_model_passed() -> None:
    watching, call, mask = Watching(), attention(), bools(1, 1, 1, KEYS)
    with Interception(awake(watching)):
        F.scaled_dot_product_attention(call.query, call.key, call.value, mask)
    (seen,) = watching.calls
    assert seen.scale == 4**-0.5
    assert seen.mask is mask
    assert seen.own.usual
