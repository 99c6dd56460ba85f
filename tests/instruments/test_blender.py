"""The blender alone: maps that a test writes, latents of one number, and no denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import TOKENS, attention, call_of, dense, layer, sampling, schedule
from tests.runs import prompt
from xattn.edits.kinds import LocalBlend, Replace
from xattn.edits.plan import make_plan
from xattn.instruments.blender import Blender
from xattn.instruments.keeper import KeptSource
from xattn.session.sampling import Asked, Sampling
from xattn.text.prompt import Prompt

MIDDLE, COARSE = layer("one.attn2"), layer("two.attn2", depth=1)
CAR = 3  # its position in "a red car"
LATENT = (4, 4)
LEFT = torch.zeros(LATENT, dtype=torch.bool)
LEFT[:, :2] = True
SOURCE, TARGET = 1.0, 5.0  # the latents of the two


def read(text: str) -> Prompt:
    return prompt(text, TOKENS)


def blender(*blends: Any, **other: Any) -> Blender:
    edits = [[Replace("red", "blue"), *([] if b is None else [b])] for b in blends]
    made = Blender(make_plan(read("a red car"), edits, read), **{"side": 4, **other})
    made.handlers([MIDDLE, COARSE, layer("attn1", "self")])
    return made


def started(made: Blender, **other: Any) -> Sampling:
    texts = made.plan.texts[1:] if made.reads else made.plan.texts
    run = sampling([read(text) for text in texts], latent=LATENT, **other)
    made.begin(run)
    return run


def write(made: Blender, run: Sampling, number: int, *cells: Tensor) -> None:
    """Make a call in which "car" acts in some cells of each row."""
    call = call_of(run, number)
    made.before_call(run, call)
    total = made.layers[MIDDLE].total
    assert total is not None
    for row, where in enumerate(cells):
        total[row, CAR] += where.float()
    made.after_call(run, call)


def latents(*rows: float) -> Tensor:
    return torch.tensor(rows)[:, None, None, None].expand(-1, 4, *LATENT).clone()


def cells(*at: tuple[int, int]) -> Tensor:
    made = torch.zeros(LATENT)
    for y, x in at:
        made[y, x] = 1
    return made


def test_latents_are_the_sources_outside_of_a_drawn_mask() -> None:
    made = blender(LocalBlend(mask=LEFT, start=0.0))
    started(made)
    out = made.after_step(0, latents(SOURCE, TARGET))
    assert torch.equal(out[0], latents(SOURCE)[0])
    assert torch.equal(out[1, 0], torch.where(LEFT, TARGET, SOURCE))
    assert made.layers == {}  # no map is needed
    assert torch.equal(made.masks[0][0], LEFT[None])


def test_a_soft_mask_mixes() -> None:
    soft = torch.full(LATENT, 0.25)
    made = blender(LocalBlend(mask=soft, start=0.0))
    started(made)
    assert made.after_step(0, latents(SOURCE, TARGET))[1].unique().tolist() == [2.0]


def test_a_mask_is_where_words_act_in_either_prompt_three_cells_wide() -> None:
    made = blender(LocalBlend("car", start=0.0))
    run = started(made)
    write(made, run, 0, cells((0, 0)), cells((3, 3)))
    out = made.after_step(0, latents(SOURCE, TARGET))
    want = torch.zeros(LATENT, dtype=torch.bool)
    want[:2, :2] = want[2:, 2:] = True
    assert torch.equal(out[1, 0], torch.where(want, TARGET, SOURCE))


def test_words_to_subtract_are_left_out() -> None:
    made = blender(LocalBlend(mask=torch.ones(LATENT), subtract="car", start=0.0))
    run = started(made)
    write(made, run, 0, cells((0, 0)), cells())
    inside = made.after_step(0, latents(SOURCE, TARGET))[1, 0] == TARGET
    want = torch.ones(LATENT, dtype=torch.bool)
    want[:2, :2] = False
    assert torch.equal(inside, want)


def test_maps_are_summed_over_steps_and_averaged_over_the_calls_of_one() -> None:
    made = blender(LocalBlend("car", threshold=0.4, start=0.0))
    run = started(made, schedule=schedule(30.0, 20.0, 20.0, order=2))
    here, there = cells((0, 0)), cells((3, 3))
    write(made, run, 0, here, here)
    write(made, run, 1, here, here)  # the step's second call counts as half of it
    out = made.after_step(0, latents(SOURCE, TARGET))
    assert (out[1, 0] == TARGET).sum() == 4
    write(made, run, 2, 0.5 * there, 0.5 * there)  # half of what the first step left
    out = made.after_step(1, latents(SOURCE, TARGET))
    assert (out[1, 0] == TARGET).sum() == 8


def test_a_blend_waits_for_its_start() -> None:
    made = blender(LocalBlend(mask=LEFT, start=0.5))
    started(made)
    whole = latents(SOURCE, TARGET)
    for step in (0, 1):
        assert torch.equal(made.after_step(step, whole), whole)
    assert not torch.equal(made.after_step(2, whole), whole)
    assert [mask is None for mask in made.masks[0]] == [True, True, False]


def test_each_sibling_has_a_blend_of_its_own_or_none() -> None:
    made = blender(LocalBlend(mask=LEFT, start=0.0), None)
    started(made)
    out = made.after_step(0, latents(SOURCE, TARGET, 7.0))
    assert torch.equal(out[1, 0], torch.where(LEFT, TARGET, SOURCE))
    assert torch.equal(out[2], latents(7.0)[0])
    assert made.masks[1] == [None]


def test_several_images_follow_their_own_source() -> None:
    made = blender(LocalBlend(mask=LEFT, start=0.0))
    prompts = made.plan.prompts
    run = sampling(latent=LATENT, asked=Asked(prompts, (0, 0, 1, 1)))
    made.begin(run)
    out = made.after_step(0, latents(1, 2, 5, 6))
    assert out[:, 0, 0, 3].tolist() == [1, 2, 1, 2]
    assert out[:, 0, 0, 0].tolist() == [1, 2, 5, 6]
    with pytest.raises(ValueError, match="latents has 3 rows; expected 2 for each"):
        made.after_step(1, latents(1, 2, 5))


def test_maps_are_those_of_the_middle_resolution_as_they_are_in_effect() -> None:
    made = blender(LocalBlend("car", start=0.0))
    run = started(made)
    call = call_of(run)
    made.before_call(run, call)
    assert [each.live for each in made.layers.values()] == [True, False]
    one = attention(4, 16)
    made.layers[MIDDLE].transform(one)
    want = dense(one)[2:].mean(1).transpose(-1, -2).unflatten(-1, LATENT)
    torch.testing.assert_close(made.layers[MIDDLE].total, want)
    made.end(run)
    assert made.layers[MIDDLE].total is None


def test_only_what_acts_between_steps_must_be_called() -> None:
    assert not blender(None).between_steps
    assert blender(LocalBlend("car")).between_steps
    assert blender(None, kept=KeptSource("a red car", 1)).between_steps


def test_a_blend_that_never_acts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start=0\.9 never acts in a run of 3 steps"):
        started(blender(LocalBlend("car", start=0.9)))


def test_a_kept_source_blends_as_the_source_in_the_batch_does() -> None:
    kept = KeptSource("a red car", 1)
    here, there = cells((0, 0)), cells((3, 3))
    whole = blender(LocalBlend("car", start=0.0), kept=kept)
    run = started(whole)
    outs = []
    for step in range(3):
        write(whole, run, step, here, there)
        outs.append(whole.after_step(step, latents(SOURCE + step, TARGET)))
    assert len(kept.latents) == len(kept.maps) == 3
    assert [float(each[0, 0, 0, 0]) for each in kept.latents] == [1, 2, 3]
    later = blender(LocalBlend("car", start=0.0), kept=kept, reads=True)
    run = started(later)
    for step in range(3):
        write(later, run, step, there)
        assert torch.equal(later.after_step(step, latents(TARGET)), outs[step][1:])
