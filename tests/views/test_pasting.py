from __future__ import annotations

import math
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter

from xattn.views.pasting import as_mask, feathered, fidelity, pasted, psnr


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8), mode=None)


MASK = np.zeros((8, 8), dtype=bool)
MASK[2:4, 5:7] = True


def test_pasting_leaves_the_rest_of_a_large_photo_bit_for_bit() -> None:
    original, edited = noise((203, 97)), noise((64, 64), seed=1)
    found = pasted(original, edited, MASK, feather=1)
    changed = (np.asarray(found) != np.asarray(original)).any(-1)
    cell_x, cell_y = 203 / 8, 97 / 8
    reach = 26  # a cell of the mask's grid
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 2 * cell_y - reach - 1
    assert rows.max() <= 4 * cell_y + reach + 1
    assert columns.min() >= 5 * cell_x - reach - 1
    assert columns.max() <= 7 * cell_x + reach + 1
    middle = np.asarray(found)[37, 152]
    large = edited.resize((203, 97), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(middle, np.asarray(large)[37, 152])


def test_an_empty_mask_pastes_nothing() -> None:
    original = noise((40, 30))
    found = pasted(original, noise((8, 8)), np.zeros((4, 4), dtype=bool))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(original))


def test_pasting_keeps_transparency_and_turns_pictures_upright() -> None:
    original = noise((40, 30), "RGBA")
    found = pasted(original, noise((8, 8)), MASK)
    assert found.mode == "RGBA"
    np.testing.assert_array_equal(found.getchannel("A"), original.getchannel("A"))
    turned = noise((40, 30))
    turned.getexif()[0x0112] = 6  # on its side
    assert pasted(turned, noise((8, 8)), MASK).size == (30, 40)


def test_a_feather_grows_the_mask_as_far_as_pillows_maxima_do() -> None:
    mask = np.random.default_rng(0).random((5, 7)) > 0.7
    drawn = Image.fromarray((255 * mask).astype(np.uint8))
    drawn = drawn.resize((70, 40), Image.Resampling.NEAREST)
    grown = drawn.filter(ImageFilter.MaxFilter(11)).filter(ImageFilter.BoxBlur(5))
    np.testing.assert_array_equal(feathered(mask, (70, 40), 1.0), grown)


def test_a_photograph_of_12_megapixels_is_pasted_into_in_seconds() -> None:
    original, start = Image.new("RGB", (4000, 3000)), time.process_time()
    found = pasted(original, noise((64, 64)), MASK)
    assert time.process_time() - start < 15  # growing pixel by pixel takes minutes
    assert found.size == (4000, 3000)


def test_a_feather_fades_from_the_whole_mask_to_nothing() -> None:
    found = np.asarray(feathered(MASK, (64, 64), 1.0))
    assert found[16:32, 40:56].min() == 255
    assert found[:7].max() == 0
    assert 0 < found[13, 48] < 255
    hard = np.asarray(feathered(MASK, (64, 64), 0.0))
    assert set(np.unique(hard)) == {0, 255}


def test_psnr_and_fidelity_are_in_decibels() -> None:
    grey, lighter = (Image.new("RGB", (4, 4), (v, v, v)) for v in (100, 110))
    assert psnr(grey, lighter) == pytest.approx(20 * math.log10(25.5))
    assert psnr(grey, grey) == math.inf
    found = fidelity(grey, grey, lighter)
    assert found.to_reconstruction == math.inf
    assert str(found).startswith("inf dB to the autoencoder's reconstruction, 28.1 dB to the photo")


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(height, width\), got \(2, 2, 3\)"):
        as_mask(np.zeros((2, 2, 3)))
