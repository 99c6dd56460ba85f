"""LocalBlend's masks and what they do to latents."""

from __future__ import annotations

import pytest
import torch

from xattn.edits.masks import blended, fit_mask, left_out, narrowed, pair_mask, word_mask
from xattn.edits.tokens import Places


def spot(height: int, width: int, row: int, column: int, value: float = 1.0) -> torch.Tensor:
    heat = torch.zeros(height, width)
    heat[row, column] = value
    return heat


def test_a_single_peak_grows_to_three_by_three_and_to_the_grid() -> None:
    mask = word_mask(spot(4, 4, 1, 1)[None], (8, 8), 0.3)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:6, 0:6] = True  # queries 0 to 2, twice as large
    assert torch.equal(mask, expected)


def test_the_threshold_is_a_share_of_the_maximum() -> None:
    maps = torch.stack([spot(6, 6, 0, 0, 10.0), spot(6, 6, 5, 5, 2.9)])
    assert not bool(word_mask(maps, (6, 6), 0.3)[5, 5])
    assert bool(word_mask(maps, (6, 6), 0.28)[5, 5])
    assert torch.equal(word_mask(maps, (6, 6), 0.3), word_mask(maps * 1e-4, (6, 6), 0.3))


def test_the_maps_of_a_words_tokens_are_summed() -> None:
    maps = torch.stack([spot(6, 6, 0, 0), spot(6, 6, 0, 0), spot(6, 6, 5, 5)])
    assert not bool(word_mask(maps, (6, 6), 0.5)[5, 5])  # 1 of 2


def test_no_word_and_no_heat_give_an_empty_mask() -> None:
    assert not bool(word_mask(torch.ones(0, 4, 4), (8, 8), 0.3).any())
    assert not bool(word_mask(torch.zeros(2, 4, 4), (8, 8), 0.0).any())
    assert not bool(word_mask(-torch.ones(1, 4, 4), (8, 8), 0.3).any())


def test_an_edits_mask_is_the_union_less_what_is_subtracted() -> None:
    source = torch.zeros(1, 5, 8, 8)
    target = torch.zeros(1, 5, 8, 8)
    source[0, 1, 1, 1] = 1  # the word in the source
    target[0, 2, 6, 6] = 1  # its successor
    target[0, 4, 6, 7] = 1  # what is taken out
    places = Places((1,), (2,), (), (4,))
    mask = pair_mask(source, target, places, (8, 8), 0.3)[0]
    assert bool(mask[0:3, 0:3].all())
    assert bool(mask[5:8, 5].all())
    assert not bool(mask[5:8, 6:8].any())
    assert int(left_out(source, target, places, (8, 8), 0.3).sum()) == 6


def test_masks_are_made_for_each_image_alone() -> None:
    maps = torch.stack([spot(6, 6, 0, 0, 100.0)[None], spot(6, 6, 5, 5, 1.0)[None]])
    mask = word_mask(maps, (6, 6), 0.3)
    assert mask.shape == (2, 6, 6)
    assert bool(mask[1, 5, 5])
    assert not bool(mask[1, 0, 0])


def test_blending_is_exact_on_both_sides() -> None:
    torch.manual_seed(0)
    source, edit = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    mask = torch.rand(2, 6, 8) > 0.5
    result = blended(edit, source, mask)
    inside = mask[:, None].expand_as(edit)
    assert torch.equal(result[inside], edit[inside])
    assert torch.equal(result[~inside], source[~inside])
    assert torch.equal(blended(edit, source, torch.ones(6, 8, dtype=torch.bool)), edit)


def test_a_soft_mask_mixes() -> None:
    source, edit = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    soft = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    assert torch.equal(blended(edit, source, soft)[0, 0], soft)


def test_a_mask_in_pixels_covers_every_latent_it_touches() -> None:
    mask = torch.zeros(16, 32, dtype=torch.bool)
    mask[0, 0] = mask[15, 31] = True
    fitted = fit_mask(mask, (4, 8), 4)
    assert fitted.dtype == torch.bool
    assert fitted.nonzero().tolist() == [[0, 0], [3, 7]]
    soft = torch.zeros(16, 32)
    soft[5, 5] = 0.5
    assert fit_mask(soft, (4, 8), 4)[1, 1] == 0.5
    assert torch.equal(fit_mask(fitted, (4, 8), 4), fitted)


def test_a_mask_of_the_wrong_shape_says_what_fits() -> None:
    with pytest.raises(ValueError, match=r"10 x 10.*16 x 32 or the latents' 4 x 8"):
        fit_mask(torch.ones(10, 10), (4, 8), 4)


def test_a_mask_is_narrowed_to_the_neighbourhood_of_what_changed() -> None:
    source = torch.zeros(2, 3, 8, 8)
    latents = source.clone()
    latents[:, :, 2, 2], latents[:, :, 6, 6], latents[0, :, 0, 7] = 1.0, 0.2, 50.0
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[:, 0, 7] = False  # what lies outside counts for nothing
    around = torch.zeros_like(mask)
    around[:, 1:4, 1:4] = True
    assert torch.equal(narrowed(mask, latents, source, 0.3), around)
    around[:, 5:8, 5:8] = True
    assert torch.equal(narrowed(mask, latents, source, 0.1), around)
    assert narrowed(mask, latents, source, 0.0) is mask
    assert not narrowed(mask, source, source, 0.3).any()
