"""TokenCompose's losses on maps that are given, and the divergence of InitNO."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig

import xattn
from tests import tiny
from xattn.guidance.noise import divergence
from xattn.guidance.teaching import SupervisedMaps

HEAT = torch.tensor([[0.5, 0.25], [0.125, 0.125]])


class Given(SupervisedMaps):
    """Two layers of one image, whose maps are given: one twice as fine as the other."""

    def __init__(self) -> None:
        pass

    @property
    def images(self) -> int:
        return 1

    def layers(self, word: Any, image: int = 0) -> dict[str, torch.Tensor]:
        return {"coarse": HEAT, "fine": HEAT.repeat_interleave(2, 0).repeat_interleave(2, 1)}


LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])


def test_the_token_loss_is_the_square_of_the_mass_outside() -> None:
    assert float(Given().token_loss({"car": LEFT})) == pytest.approx((1 - 0.625) ** 2)
    both = Given().token_loss({"car": LEFT, "boat": 1 - LEFT})
    assert float(both) == pytest.approx(((1 - 0.625) ** 2 + (1 - 0.375) ** 2) / 2)


def test_each_image_may_have_words_of_its_own() -> None:
    both = Given().token_loss([{"car": LEFT, "boat": 1 - LEFT}])
    assert float(both) == pytest.approx(((1 - 0.625) ** 2 + (1 - 0.375) ** 2) / 2)
    with pytest.raises(ValueError, match="masks= has 2 mappings for 1 images"):
        Given().token_loss([{"car": LEFT}, {}])


def test_the_pixel_loss_is_the_binary_cross_entropy() -> None:
    want = -(math.log(0.5) + math.log(0.125) + math.log(0.75) + math.log(0.875)) / 4
    assert float(Given().pixel_loss({"car": LEFT})) == pytest.approx(want, rel=1e-5)
    assert float(Given().pixel_loss({"car": LEFT[None]})) == pytest.approx(want, rel=1e-5)


def test_masks_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(ValueError, match=r"the mask of 'car' is \(2, 2, 2\); expected"):
        Given().token_loss({"car": torch.ones(2, 2, 2)})
    with pytest.raises(ValueError, match="values from 0 to 1"):
        Given().token_loss({"car": 2 * LEFT})
    with pytest.raises(ValueError, match="must hold a mask"):
        Given().pixel_loss({})


def test_the_divergence_is_that_of_two_normals() -> None:
    mean, log_std = torch.tensor([0.5, 0.0]), torch.tensor([0.0, math.log(2.0)])
    one = torch.distributions.Normal(mean, log_std.exp())
    want = torch.distributions.kl_divergence(one, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(divergence(mean, log_std), want)


def test_teaching_accumulates_gradients_as_accelerate_does() -> None:
    """Two halves of a batch, accumulated by accelerate, teach a LoRA as the whole batch does."""
    captions = ["a red car", "a boat and a car"]
    left = torch.zeros(4, 4)
    left[:, :2] = 1
    masks: list[dict[Any, Any]] = [{"car": left}, {"boat": 1 - left}]

    def taught(parts: list[slice]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(parts))
        pipe = tiny.sd1()
        pipe.unet.requires_grad_(False)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_q", "attn2.to_k"]))
        for name, weight in pipe.unet.named_parameters():
            if "lora_B" in name:  # zero at first: A would have no gradient
                torch.nn.init.constant_(weight, 0.1)
        weights = [w for w in pipe.unet.parameters() if w.requires_grad]
        unet, optimizer = accelerator.prepare(pipe.unet, torch.optim.SGD(weights, lr=1.0))
        states = pipe.encode_prompt(captions, "cpu", 1, False)[0].detach()
        noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for part in parts:
            with (
                accelerator.accumulate(unet),
                xattn.supervised(
                    accelerator.unwrap_model(unet), tokenizer=pipe.tokenizer, prompt=captions[part]
                ) as maps,
            ):
                unet(noisy[part], 500, states[part])
                loss = maps.token_loss(masks[part]) + maps.pixel_loss(masks[part])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        return {name: w.detach() for name, w in pipe.unet.named_parameters() if w.requires_grad}

    halves, whole = taught([slice(0, 1), slice(1, 2)]), taught([slice(0, 2)])
    moved = [weight for name, weight in whole.items() if "lora_B" in name]
    assert any(not torch.equal(each, torch.full_like(each, 0.1)) for each in moved)
    for name, weight in whole.items():
        torch.testing.assert_close(halves[name], weight)
