"""Directions of concepts: the outputs that are kept, and what is asked of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from tests.tiny import transformers

PROMPT = "a red car"


def drawn(pipe: Any, **options: Any) -> Any:
    return pipe(
        PROMPT, generator=torch.Generator().manual_seed(0), num_inference_steps=2, height=16,
        width=24, output_type="np", **options,
    ).images[0]  # fmt: skip


def test_outputs_are_what_the_last_projection_receives_and_nothing_changes() -> None:
    pipe = tiny.sd1()
    plain = drawn(pipe)
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.to_out[0].register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
        )
        for name, module in pipe.unet.named_modules()
        if name.endswith("attn2")
    ]
    with xattn.record(pipe, outputs=True) as trace:
        image = drawn(pipe)
    for hook in hooks:
        hook.remove()
    np.testing.assert_array_equal(image, plain)
    run = trace.run
    assert set(run.outputs) == set(seen) == {layer.name for layer in run.layers}
    for layer in run.layers:
        kept = run.outputs[layer.name]
        assert kept.shape[2:] == layer.grid
        want = torch.stack(seen[layer.name])[:, 1:].mean(0)  # the conditional row, over two calls
        torch.testing.assert_close(kept.flatten(2).float(), want.transpose(1, 2), atol=1e-3, rtol=0)
    assert run.nbytes > run.store.nbytes


def test_a_place_that_gets_a_concepts_value_is_like_it() -> None:
    pipe = tiny.sd1()
    red, boat = xattn.concept_vector(pipe, "red"), xattn.concept_vector(pipe, "a boat")
    assert red.cosine(red) == pytest.approx(1)
    assert abs(red.cosine(boat)) < 1
    with xattn.record(pipe, outputs=True) as trace:
        drawn(pipe)
    for name, outputs in trace.run.outputs.items():  # red at one corner alone
        outputs.zero_()
        outputs[0, :, 0, 0] = red.directions[name]
    found = trace.similarity(red, layers="down_blocks.0.*")
    assert np.asarray(found)[0, 0] == found.array.max() > 0.9
    assert np.asarray(found)[-1, -1] < 0
    assert found.overlay().width > found.overlay(colorbar=False).width
    for share in trace.explained(red).values():
        assert share == pytest.approx(1, abs=1e-3)
    for share in trace.explained(boat).values():
        assert 0 <= share < 1
    ranked = trace.represented((0, 0), [boat, red], layers="down_blocks.0.*")
    assert [name for name, _ in ranked] == ["red", "a boat"]
    assert ranked[0][1] == pytest.approx(float(found.array[0, 0]))


def test_a_probe_keeps_the_outputs_of_each_picture() -> None:
    from PIL import Image

    pipe = tiny.sd1()
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    both = xattn.probe(pipe, pictures, PROMPT, levels=0.5, outputs=True)
    alone = xattn.probe(pipe, pictures[1], PROMPT, levels=0.5, outputs=True)
    for name, outputs in alone.run.outputs.items():
        assert outputs.shape[0] == 1
        torch.testing.assert_close(both[1].run.outputs[name], outputs, atol=2e-3, rtol=0)


def test_what_cannot_be_asked_is_said() -> None:
    pipe = tiny.sd1()
    red = xattn.concept_vector(pipe, "red")
    with xattn.record(pipe) as trace:
        drawn(pipe)
    with pytest.raises(ValueError, match="no outputs were kept: record or probe with outputs=True"):
        trace.similarity(red)
    with pytest.raises(ValueError, match="a text with a word in it"):
        xattn.concept_vector(pipe, " ")
    joint = transformers.sd3(t5=False)
    with pytest.raises(TypeError, match="in the form 'output'"):
        xattn.concept_vector(joint, "red")
    with (
        pytest.raises(ValueError, match="compared with outputs by also="),
        xattn.record(joint, outputs=True),
    ):
        drawn(joint)
    with xattn.record(pipe, outputs=True) as trace:
        drawn(pipe)
    other = xattn.ConceptVector("red", {"another.layer": torch.ones(4)})
    with pytest.raises(ValueError, match="make it with the pipeline that was recorded"):
        trace.similarity(other)
