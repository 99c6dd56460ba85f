"""Photographs together with what else a pipeline can have, and what records around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import xattn
from tests import tiny
from tests.api.test_photographs import PROMPT, picture

BLUE = xattn.Replace("red", "blue")


def adapted() -> tuple[Any, dict[str, Any]]:
    pipe = tiny.sd1()
    return pipe, {"ip_adapter_image_embeds": tiny.load_ip_adapter(pipe)}


def controlled() -> tuple[Any, dict[str, Any]]:
    return tiny.controlnet(), {"control_image": picture()}


def with_lora() -> tuple[Any, dict[str, Any]]:
    pipe = tiny.sd1()
    tiny.add_lora(pipe)
    return pipe, {"cross_attention_kwargs": {"scale": 0.5}}


@pytest.mark.parametrize("make", [adapted, controlled, with_lora])
def test_the_source_is_the_pivots_with_adapters_controlnets_and_loras(make: Any) -> None:
    pipe, options = make()
    result = xattn.edit(
        pipe, PROMPT, BLUE, image=picture(), num_inference_steps=2, output_type="latent",
        trace=False, **options,
    )  # fmt: skip
    assert result.inversion is not None
    assert torch.equal(result.source, result.inversion.pivots[-1, 0])
    assert not torch.equal(result.images[0], result.source)
    again = xattn.edit(
        pipe, PROMPT, BLUE, source=result, output_type="latent", trace=False
    )  # the options stay with the inversion
    torch.testing.assert_close(again.images[0], result.images[0], rtol=1e-4, atol=1e-4)


def test_a_recording_around_an_edit_sees_the_inversion_as_a_run_of_its_own() -> None:
    pipe = tiny.sd1()
    with xattn.record(pipe) as trace:
        xattn.edit(pipe, PROMPT, BLUE, image=picture(), num_inference_steps=2, trace=False)
    assert len(trace) == 2
    assert [one.run.done for one in trace] == [2, 2]
    assert [one.prompts for one in trace] == [(PROMPT,), (PROMPT, "a blue car on a lawn")]
    assert trace[1].heatmap("blue", image=1).maximum > 0


def test_a_sweep_of_a_photograph_starts_from_its_inversion() -> None:
    pipe = tiny.sd1()
    result = xattn.sweep(
        pipe, PROMPT, "red", [0, 1, 2], image=picture(), num_inference_steps=2,
        output_type="latent", trace=False,
    )  # fmt: skip
    assert result.labels == ("red x 0", "red x 1", "red x 2")
    assert torch.equal(result.images[1], result.source)
    assert not torch.equal(result.images[0], result.source)
    again = xattn.sweep(
        pipe, PROMPT, "red", [0], source=result, output_type="latent", trace=False
    )  # fmt: skip
    torch.testing.assert_close(again.images[0], result.images[0], rtol=1e-4, atol=1e-4)
