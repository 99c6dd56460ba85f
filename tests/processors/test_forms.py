"""Both forms of edited cross-attention equal the definition, and so do their gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import CAR, NIGHT, LargestShapes, read
from xattn.edits.kinds import Refine, Replace, Reweight
from xattn.edits.plan import make_plan
from xattn.processors.call import AttentionCall
from xattn.processors.editing import CrossEditing, EditedCall, SelfEditing
from xattn.processors.forms import (
    CrossStep,
    EditedRows,
    on_probabilities,
    on_values,
)


def _own_call(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m)


@pytest.mark.parametrize("last", [False, True], ids=["mixed", "edited rows last"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("owns", [False, True], ids=["follows", "owns"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("queries", [31, 32])
def test_both_forms_equal_the_definition(
    queries: int, images: int, owns: bool, masked: bool, last: bool
) -> None:
    torch.manual_seed(0)
    tokens = 77
    batch = 3 * images + (0 if last else 1)
    query, key, value = (
        torch.randn(3 * images + batch, 4, n, 16) for n in (queries, tokens, tokens)
    )
    mask = torch.randn(len(query), 1, 1, tokens) if masked else None
    made = make_plan(
        read(CAR),
        [
            [Replace("car", "skateboard"), Reweight("red", -2.0)],
            Refine(NIGHT) if owns else Replace("red", "blue"),
        ],
        read,
    )
    mix, own, _ = made.cross(0, 10)
    start = 3 * images
    rows = EditedRows.of([0, 1], images, start, torch.device("cpu"), batch=len(query))
    assert (rows.first is not None) == last
    per_row = [j for j in range(2) for _ in range(images)]
    step = CrossStep(rows, mix[per_row], own[per_row], bool(own.any()))
    logits = query @ key.transpose(-1, -2) / 4
    probs = (logits if mask is None else logits + mask).softmax(-1)
    want = probs.clone()
    for j in range(2):
        for i in range(images):
            row = start + (j + 1) * images + i
            want[row] = probs[start + i] @ mix[j] + probs[row] * own[j]
    untouched = [row for row in range(len(query)) if row not in rows.edited.tolist()]
    plain_out = _own_call(query, key, value, mask)
    call = AttentionCall(query, key, value, mask, 0.25, _own_call)
    editing_ = CrossEditing()
    editing_.step = step
    got = editing_.transform(call).output()
    values = on_values(call, step)
    explicit = on_probabilities(call, step, EditedCall(call, step, None).edited())
    assert torch.equal(got, explicit if queries < 32 else values)  # of 16 channels
    for form in (values, explicit):
        assert torch.allclose(form, want @ value, atol=1e-5)
        assert torch.allclose(form[untouched], plain_out[untouched], atol=1e-6)
    origin = query[rows.span], key[rows.span]
    if not masked:
        apart = CrossStep(
            replace(rows, sources=rows.sources - start, span=slice(0, images)),
            step.mix,
            step.own,
            step.owns,
        )
        for form in (
            on_values(call, apart, origin),
            on_probabilities(call, apart, EditedCall(call, apart, origin).edited()),
        ):
            assert torch.allclose(form, want @ value, atol=1e-5)


@pytest.mark.parametrize("form", ["values", "probabilities"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("follows", [False, True], ids=["mixes", "follows"])
@pytest.mark.parametrize("owns", [False, True], ids=["", "owns"])
def test_both_forms_have_the_gradients_of_finite_differences(
    form: str, masked: bool, follows: bool, owns: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 2, n, 2, generator=g, dtype=torch.float64) for n in (2, 3, 3)]
    mask = torch.randn(1, 1, 1, 3, generator=g, dtype=torch.float64) if masked else None
    mix = None if follows else torch.rand(1, 3, 3, generator=g)
    if follows and owns:
        mix = torch.eye(3)[None]
    own_share = torch.rand(1, 3, generator=g) if owns else torch.zeros(1, 3)
    rows = EditedRows.of([0], 1, 1, torch.device("cpu"), batch=3)
    step = CrossStep(rows, mix, own_share, owns)

    def edited(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        call = AttentionCall(query, key, value, mask, 2**-0.5, _own_call)
        if form == "values":
            return on_values(call, step)
        return on_probabilities(call, step, EditedCall(call, step, None).edited())

    assert torch.autograd.gradcheck(edited, [t.requires_grad_() for t in inputs])


def test_no_queries_by_queries_matrix_is_made_in_self_attention() -> None:
    layer = SelfEditing()
    layer.follow = EditedRows.of([0, 1], 1, 3, torch.device("cpu"))
    torch.manual_seed(0)
    query, key, value = (torch.randn(6, 2, 1024, 16) for _ in range(3))

    with LargestShapes() as seen:
        got = layer.transform(AttentionCall(query, key, value, None, 0.25, _own_call)).output()
    assert not [s for s in seen.shapes if list(s).count(1024) > 1]
    assert (6, 2, 1024, 16) in seen.shapes  # it does look
    probs = (query @ key.transpose(-1, -2) / 4).softmax(-1)
    probs[4] = probs[5] = probs[3]
    assert torch.allclose(got, probs @ value, atol=1e-5)
