"""Which rows of a batch follow the prompts: made-up embeddings, and no denoiser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs import prompt
from xattn.models.family import DenoiserCall
from xattn.session.rows import PromptMajor, RowFinder, conditional_block, usual_block
from xattn.session.sampling import Asked

CAR, BOAT = prompt("a red car", 5), prompt("two boats", 5)


def states(*rows: float) -> Tensor:
    """Embeddings of three positions and two channels, a number for each row."""
    return torch.tensor(rows).float()[:, None, None].expand(-1, 3, 2).clone()


def call(text: Tensor | None, rows: int | None = None, **other: Any) -> DenoiserCall:
    count = len(text) if rows is None and text is not None else rows or 0
    return DenoiserCall(torch.zeros(count, 4, 2, 2), (2, 2), 10.0, text, **other)


def asked(*rows: float, negative: Tensor | None = None, images: int | None = None) -> Asked:
    images = len(rows) if images is None else images
    return Asked((CAR,), (0,) * images, states(*rows) if rows else None, negative)


@pytest.mark.parametrize(
    ("batch", "embeds", "found"),
    [
        ((0, 0, 1, 2), (1, 2), (2, 4)),  # [negative, positive]
        ((1, 2, 0, 0), (1, 2), (0, 2)),  # Lumina's [positive, negative]
        ((0, 1, 1), (1,), (1, 2)),  # PAG's [negative, positive, positive]
        ((0, 3, 1), (1,), (2, 3)),  # the third block
        ((1, 1), (1,), (1, 2)),  # both alike: the usual layout decides
        ((1, 2), (1, 2), (0, 2)),  # without guidance
        ((2, 1), (1, 2), None),  # another order
        ((0, 1, 2), (1, 2), None),  # not whole blocks
    ],
)
def test_the_conditional_block_is_found_by_its_embeddings(
    batch: Any, embeds: Any, found: Any
) -> None:
    block = conditional_block(states(*batch), states(*embeds))
    assert block == (None if found is None else slice(*found))


def test_embeddings_of_another_length_or_dtype() -> None:
    assert conditional_block(states(1)[:, :2], states(1)) is None
    assert conditional_block(states(0.1).bfloat16(), states(0.1)) == slice(0, 1)


def test_without_embeddings_all_rows_follow_or_the_second_half() -> None:
    assert usual_block(3, 3) == slice(0, 3)
    assert usual_block(6, 3) == slice(3, 6)
    with pytest.raises(RuntimeError, match=r"5 rows for 3 images.*rows= or embeds="):
        usual_block(5, 3)


def test_rows_that_the_user_names_need_no_comparing() -> None:
    finder = RowFinder(asked(1.0), rows=slice(-1, None))
    assert finder.find(call(states(5, 6, 7))) == (slice(2, 3),)


@pytest.mark.parametrize(
    ("batch", "found"),
    [((1, 1), (0, 1)), ((0, 1, 1), (1, 2)), ((1, 1, 1), (1, 2))],
    ids=["without guidance", "with guidance", "the negative prompt is the prompt"],
)
def test_perturbed_copies_are_not_taken_for_the_rows(batch: Any, found: Any) -> None:
    finder = RowFinder(replace(asked(1.0), perturbed=True))
    assert finder.find(call(states(*batch))) == (slice(*found),)


def test_another_text_is_not_ours() -> None:
    finder = RowFinder(asked(1.0))
    assert finder.find(call(states(0, 1))) == (slice(1, 2),)
    assert finder.find(call(states(0, 2))) is None
    assert finder.find(call(None, 2)) is None


@pytest.mark.parametrize(
    ("batch", "spans"),
    [
        ((0, 1), (slice(1, 2), slice(0, 1))),
        ((1, 0), (slice(0, 1), slice(1, 2))),
        ((1,), (slice(0, 1),)),  # guidance was cut off: there are no negative rows
    ],
)
def test_negative_prompts_are_the_other_rows(batch: Any, spans: Any) -> None:
    assert RowFinder(asked(1.0, images=2)).find(call(states(*batch))) == spans


def test_a_text_is_compared_once_until_it_changes() -> None:
    looked: list[slice] = []
    finder = RowFinder(asked(1.0), check=lambda _, span: looked.append(span))
    text = states(0, 1)
    for _ in range(3):
        assert finder.find(call(text)) == (slice(1, 2),)
    assert looked == [slice(1, 2)]
    text.copy_(states(1, 0))  # written in place, at the same address
    assert finder.find(call(text)) == (slice(0, 1),)
    assert finder.find(call(text.clone())) == (slice(0, 1),)
    assert len(looked) == 3


def test_each_component_has_a_text_of_its_own() -> None:
    finder = RowFinder(asked(1.0))
    unet, controlnet = states(0, 1), states(1)
    for _ in range(2):
        assert finder.find(call(unet)) == (slice(1, 2),)
        assert finder.find(call(controlnet, component="controlnet.")) == (slice(0, 1),)


def test_writes_into_inference_tensors_are_seen() -> None:
    finder = RowFinder(asked(1.0))
    with torch.inference_mode():
        text = states(0, 1)
        assert finder.find(call(text)) == (slice(1, 2),)
        text.copy_(states(1, 0))
        assert finder.find(call(text)) == (slice(0, 1),)


def test_guidances_own_pass_is_known_by_its_text() -> None:
    finder = RowFinder(asked(1.0, negative=states(5)))
    assert finder.is_negative(call(states(5)))
    assert not finder.is_negative(call(states(1)))
    assert not finder.is_negative(call(states(5, 1)))
    assert not RowFinder(asked(1.0)).is_negative(call(states(5)))


# -- batches to be edited --------------------------------------------------------------------------


def major(images: int = 2, *, rows: slice | None = None, embeds: Tensor | None = None) -> Any:
    prompts, prompt_of = (CAR, BOAT), (0,) * images + (1,) * images
    given = Asked(prompts, prompt_of, embeds)
    return PromptMajor(given, [p.text for p in prompts], rows)


def test_a_prompt_major_batch_passes() -> None:
    major().check(call(states(0, 0, 0, 0, 1, 1, 2, 2)), slice(4, 8))
    major().check(call(states(1, 1, 2, 2)), slice(0, 4))
    assert major(3).images == 3


@pytest.mark.parametrize("batch", [(1, 2, 1, 2), (1, 1, 1, 2), (1, 2, 2, 2), (1, 1, 1, 1)])
def test_rows_in_another_order_are_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"^row \d of the conditional rows"):
        major().check(call(states(*batch)), slice(0, 4))


def test_the_rounding_of_an_encoder_is_no_other_text() -> None:
    text = states(1, 1, 2, 2)
    text[1] *= 1.001
    major().check(call(text), slice(0, 4))


def test_batches_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"called with 6 rows; 2 prompts x images=2 are 4, or 8"):
        major().check_size(6)
    with pytest.raises(ValueError, match="selects 3 of the UNet's 6 rows, but 4 are needed"):
        major(rows=slice(3, 6)).check_size(6)
    major(rows=slice(2, 6)).check_size(6)
    major(embeds=states(1, 1, 2, 2)).check_size(6)  # comparing tells


def test_a_second_half_that_may_be_siblings_is_refused() -> None:
    with pytest.raises(ValueError, match="both halves"):
        major(1).check(call(states(1, 2, 1, 2)), slice(2, 4))
    major(1, embeds=states(1, 2)).check(call(states(1, 2, 1, 2)), slice(2, 4))
