"""Edits of whole pipelines: what changes nothing, what comes back, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tests import tiny
from tests.helpers import BLUE, CAR, LATENT, NIGHT, SIDE, STEPS, Generator, close, plain, run
from xattn.api.edit import sweep
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("records", [False, True])
def test_edits_that_change_nothing_are_the_plain_batch_bit_for_bit(
    family: str, records: bool
) -> None:
    pipe = getattr(tiny, family)()
    nothing = [
        [],
        Reweight("red", 1.0),
        Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
        Refine(NIGHT, cross_steps=(0.5, 0.5), self_steps=0.0),
    ]
    got = run(pipe, *nothing, trace=records)
    want = plain(pipe, [CAR, CAR, CAR, BLUE, NIGHT])
    for one, two in zip([got.source, *got.images], want, strict=True):
        assert torch.equal(one, two)
    assert (got.trace is not None) == records


def test_the_source_and_neutral_siblings_equal_runs_of_their_own() -> None:
    pipe = tiny.sd1()
    got = run(pipe, Replace("red", "blue", cross_steps=0.0, self_steps=0.0), Reweight("red", 5.0))
    assert close(got.source, plain(pipe, CAR)[0])
    assert close(got.images[0], plain(pipe, BLUE)[0])


def test_the_source_of_a_batch_is_the_plain_batchs_bit_for_bit() -> None:
    pipe = tiny.sd1()
    got = run(pipe, Replace("red", "blue"), Reweight("red", -3.0))
    assert torch.equal(got.source, plain(pipe, [CAR, BLUE, CAR])[0])


def test_recording_leaves_edited_images_unchanged() -> None:
    pipe = tiny.sd1()
    edits = [Refine(NIGHT), [Replace("red", "blue"), LocalBlend("car")]]
    one, two = run(pipe, *edits), run(pipe, *edits, trace=False)
    assert all(torch.equal(a, b) for a, b in zip(one.images, two.images, strict=True))


def test_the_pipeline_is_left_as_it_was_found() -> None:
    pipe = tiny.sd1()
    before = dict(pipe.unet.attn_processors)
    hooks = (len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks))
    run(pipe, Replace("red", "blue"))
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())
    assert hooks == (len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks))
    assert "encode_prompt" not in vars(pipe)


def test_a_failing_run_restores_the_pipeline_too() -> None:
    pipe = tiny.sd1()
    before = dict(pipe.unet.attn_processors)

    def fail(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, [Replace("red", "blue"), LocalBlend("car")], callback_on_step_end=fail)
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())
    assert torch.equal(plain(pipe), plain(tiny.sd1()))


def test_a_users_mask_keeps_everything_outside_exactly() -> None:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[8:20, 4:24] = True
    got = run(tiny.sd1(), [Replace("red", "blue"), LocalBlend(mask=mask, start=0.0)])
    inside = mask[::2, ::2]
    assert torch.equal(got.images[0][:, ~inside], got.source[:, ~inside])
    assert not close(got.images[0][:, inside], got.source[:, inside])
    assert got.masks[0] is not None
    assert torch.equal(got.masks[0], inside.expand(STEPS, -1, -1))


def test_the_trace_has_what_each_image_attends_to_in_effect() -> None:
    got = run(tiny.sd1(), Reweight("red", 3.0), Replace("red", "blue"))
    assert got.trace is not None
    assert got.trace.prompts == (CAR, CAR, BLUE)
    source = torch.tensor(got.trace.heatmap("red", 0, steps=0).array)
    heavy = torch.tensor(got.trace.heatmap("red", 1, steps=0).array)
    swapped = torch.tensor(got.trace.heatmap("blue", 2, steps=0).array)
    # in the first step all rows have the same queries
    assert torch.allclose(heavy, 3 * source, rtol=1e-2, atol=1e-4)
    assert torch.allclose(swapped, source, rtol=1e-2, atol=1e-4)


def test_the_trace_can_be_told_what_to_keep() -> None:
    got = run(tiny.sd1(), Replace("red", "blue"), trace={"keep": ["layer"], "words": ["car"]})
    assert got.trace is not None
    assert got.trace.words == ("car",)
    assert got.trace.run.keep == frozenset({"layer"})
    layers = run(tiny.sd1(), [], trace={"layers": "mid_block.*"}).trace
    assert layers is not None
    assert [layer.name.split(".")[0] for layer in layers.run.layers] == ["mid_block"]
    assert run(tiny.sd1(), [], trace=False).trace is None


def test_pictures_come_labelled_in_a_strip() -> None:
    got = run(tiny.sd1(), Replace("red", "blue"), Reweight("red", 2), output_type="pil")
    assert isinstance(got.source, Image.Image)
    strip = got.strip(side=64)
    assert strip.width > 3 * 64
    png = got._repr_png_()
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert "Replace red -> blue" in repr(got)
    assert "2 red" in str(got.plan)


def test_a_sweep_has_a_sibling_for_each_weight(generator: Generator) -> None:
    pipe = tiny.sd1()
    options = {"generator": generator(), "num_inference_steps": 2, "height": SIDE, "width": SIDE}
    got = sweep(pipe, CAR, "red", [-1, 0, 1, 2], **options)
    assert got.labels == ("red x -1", "red x 0", "red x 1", "red x 2")
    assert got.images[2].tobytes() == got.source.tobytes()
    assert got.images[0].tobytes() != got.source.tobytes()
    assert got.strip(64).width > 4 * 64


def test_the_users_callback_is_called_after_the_blend() -> None:
    seen: list[tuple[int, bool]] = []
    mask = torch.zeros(LATENT, LATENT, dtype=torch.bool)

    def look(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors["latents"]
        seen.append((index, torch.equal(latents[0], latents[1])))
        return {}

    edits = [Replace("red", "blue"), LocalBlend(mask=mask, start=0.4)]
    run(tiny.sd1(), edits, callback_on_step_end=look)
    assert seen == [(0, False), (1, False), (2, True), (3, True), (4, True)]


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75])
def test_a_blend_that_acts_in_the_last_step_alone_is_drawn(start: float) -> None:
    edits = [Replace("red", "blue"), LocalBlend(mask=torch.zeros(LATENT, LATENT), start=start)]
    steps = 1 if start == 0.0 else 4
    result = run(tiny.sd1(), edits, num_inference_steps=steps)
    assert torch.equal(result.images[0], result.source)
