"""Dissection of channels: a planted one is found, IoU as by brute force, channels weakened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import xattn
from tests import tiny
from tests.helpers import draw, picture
from tests.tiny import transformers
from xattn.attribution.channels import Channel, on_plane
from xattn.attribution.marked import Marked
from xattn.instruments.channels import chosen_modules, first_of

PROMPT = "a red car"
LAYER = "up_blocks.0.resnets.0"


def corner(row: int, column: int, side: int = 32) -> Any:
    mask = np.zeros((side, side), dtype=bool)
    mask[row : row + side // 2, column : column + side // 2] = True
    return mask


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def pictures() -> list[Marked]:
    masks = [
        {"red": corner(0, 0), "car": corner(0, 16)},
        {"red": corner(16, 16), "car": corner(0, 0)},
        {"car": corner(16, 0)},
    ]
    return [Marked(picture(32, 32), PROMPT, each) for each in masks]


def test_a_planted_channel_is_found(pipe: Any, pictures: list[Marked]) -> None:
    module = pipe.unet.get_submodule(LAYER)
    masks = [each.masks.get("red", np.zeros((32, 32))) for each in pictures]

    def plant(_: Any, __: Any, output: Tensor) -> Tensor:
        wanted = torch.tensor(np.stack(masks), dtype=torch.float32)[:, None]
        output[:, 5:6] = F.interpolate(wanted, size=output.shape[2:], mode="area")
        return output

    hook = module.register_forward_hook(plant)
    table = xattn.dissect(
        pipe, pictures, units="channels", layers=[LAYER, "mid_block"], levels=(0.5,)
    )
    hook.remove()
    first, concept, value = table.detectors()[0]
    assert (first, concept) == (Channel(LAYER, 5), "red")
    assert value > 0.9
    assert table.counts.tolist() == [3, 2]
    assert table.order("red")[0] == first
    assert table.sentences()[5].startswith("channel 5 of")
    assert {layer for layer, _ in table.heads} == {LAYER, "mid_block"}
    assert len(table.table(3).splitlines()) == 4
    assert table.plot(3).height < table.plot().height


@pytest.mark.parametrize("share", [None, 0.1])
def test_ious_of_channels_are_those_of_brute_force(
    pipe: Any, pictures: list[Marked], share: float | None
) -> None:
    seen: list[Tensor] = []
    module = pipe.unet.get_submodule("mid_block")
    hook = module.register_forward_hook(
        lambda _, __, output: seen.append(first_of("mid_block", output))
    )
    table = xattn.dissect(
        pipe, pictures, units="channels", layers="mid_block", levels=(0.7, 0.3), threshold=share
    )
    hook.remove()
    sums: Any = seen[0] + seen[1]
    for channel in (0, 7, 30):
        maps = F.interpolate(sums[:, channel : channel + 1] / 2, size=(16, 16), mode="bilinear")
        cells = maps[:, 0].tolist()
        values = sorted(value for plane in cells for row in plane for value in row)
        for c, concept in enumerate(table.concepts):
            both = either = 0
            for n, each in enumerate(pictures):
                flat = [abs(value) for row in cells[n] for value in row]
                limit = 2 * sum(flat) / len(flat)
                if share is not None:
                    limit = float(np.quantile(values, 1 - share))
                mask = each.masks.get(concept, np.zeros((32, 32)))[::2, ::2]
                for y, x in np.ndindex(16, 16):
                    above = cells[n][y][x] > limit
                    both += int(above and mask[y, x])
                    either += int(above or mask[y, x])
            assert table.values[channel, c] == pytest.approx(both / either, abs=1e-9)


@pytest.mark.parametrize("make", [tiny.sd1, lambda: transformers.sd3(t5=False)])
def test_the_channels_of_text_layers_are_the_default_and_can_be_weakened(make: Any) -> None:
    own = make()
    pictures = [Marked(picture(32, 32), PROMPT, {"red": corner(0, 0)})]
    table = xattn.dissect(own, pictures, units="channels", levels=(0.5,))
    assert len(table.heads) == len(table.values) > 100
    plain = draw(own, PROMPT, steps=1)
    with table.weaken(own, "red", weight=1.0):
        np.testing.assert_array_equal(draw(own, PROMPT, steps=1), plain)
    with table.weaken(own, "red", count=20) as chosen:
        changed = draw(own, PROMPT, steps=1)
    assert sum(map(len, chosen.values())) == 20
    assert not np.allclose(changed, plain, atol=1e-4)
    np.testing.assert_array_equal(draw(own, PROMPT, steps=1), plain)


def test_channels_that_cannot_be_dissected_are_refused(pipe: Any, pictures: list[Marked]) -> None:
    with pytest.raises(ValueError, match="'heads' or 'channels'"):
        xattn.dissect(pipe, pictures, units="neurons")
    with pytest.raises(ValueError, match="channels have by='iou'"):
        xattn.dissect(pipe, pictures, units="channels", by="relevance")
    with pytest.raises(ValueError, match="does not match the name of a module"):
        xattn.dissect(pipe, pictures, units="channels", layers="attic")
    assert list(chosen_modules(pipe.unet, "mid_block.*")) == [
        "mid_block.attentions",
        "mid_block.resnets",
    ]
    with pytest.raises(TypeError, match="time_embedding is not a tensor of places"):
        xattn.dissect(pipe, pictures, units="channels", layers="time_embedding", levels=(0.5,))
    with pytest.raises(ValueError, match="77 places"):
        on_plane("text", torch.zeros(1, 77, 8), (32, 48))
