"""The editor alone: a plan, a made-up run, attention of random numbers, and no denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fakes import TOKENS, attention, call_of, dense, layer, sampling, schedule
from tests.runs import prompt
from xattn.edits.kinds import Refine, Replace, Reweight
from xattn.edits.plan import EditPlan, make_plan
from xattn.instruments.editor import Editor
from xattn.instruments.keeper import KeptSource
from xattn.instruments.reach import area_limit, middle_grid
from xattn.models.family import AttentionLayer
from xattn.processors.call import AttentionCall
from xattn.session.sampling import Asked, Sampling
from xattn.text.prompt import Prompt

CROSS, OWN, FINE = layer("one.attn2"), layer("two.attn1", "self", depth=1), layer("attn1", "self")
LATENT = (32, 32)  # self-attention follows in layers of at most 16 x 16


def read(text: str) -> Prompt:
    return prompt(text, TOKENS)


def plan(*edits: Any) -> EditPlan:
    return make_plan(read("a red car"), list(edits), read)


def started(editor: Editor, *, images: int = 1, steps: int = 10, **other: Any) -> Sampling:
    texts = editor.texts
    prompt_of = tuple(j for j in range(len(texts)) for _ in range(images))
    run = sampling(
        texts,
        latent=LATENT,
        asked=Asked(tuple(map(read, texts)), prompt_of),
        sample=torch.zeros(2 * len(prompt_of), 4, *LATENT),
        schedule=schedule(*range(steps, 0, -1)),
        **other,
    )
    editor.handlers([CROSS, OWN, FINE])
    editor.begin(run)
    return run


def edited(editor: Editor, run: Sampling, at: AttentionLayer, step: int, one: Any) -> Any:
    """The call of a layer as it is in effect in a step."""
    editor.before_call(run, call_of(run, step))
    handler = {**editor.cross, **editor.selfs}[at]
    return handler.transform(one) if handler.live else one


def close(call: AttentionCall, probs: Tensor) -> None:
    """A call has these probabilities, and the output that they make."""
    torch.testing.assert_close(call.output(), probs @ call.value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(call.probabilities(slice(0, len(probs))), probs)


@pytest.mark.parametrize("queries", [4, 16], ids=["probabilities", "values"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("step", [0, 5, 9])
def test_cross_attention_follows_the_plan_in_each_siblings_rows(
    step: int, images: int, queries: int
) -> None:
    edits = plan(Replace("red", "blue", cross_steps=0.5), Reweight("car", 3.0))
    run = started(editor := Editor(edits), images=images)
    one = attention(6 * images, queries)
    probs = dense(one)
    mix, own, active = edits.cross(step, 10)
    assert active == (step < 5, True)
    for j in range(2):
        for i in range(images):
            source, row = 3 * images + i, 3 * images + (j + 1) * images + i
            probs[row] = dense(one)[source] @ mix[j] + dense(one)[row] * own[j]
    close(edited(editor, run, CROSS, step, one), probs)


@pytest.mark.parametrize(("step", "follows"), [(0, True), (3, True), (4, False), (9, False)])
def test_self_attention_follows_the_source_while_its_window_lasts(step: int, follows: bool) -> None:
    run = started(editor := Editor(plan(Replace("red", "blue"))))
    one = attention(4, 16, 16)
    probs = dense(one)
    if follows:
        probs[3] = probs[2]
    close(edited(editor, run, OWN, step, one), probs)


def test_layers_with_too_many_queries_keep_their_self_attention() -> None:
    edits = plan(Replace("red", "blue", self_steps=1.0))
    for side, live in ((None, [True, False]), (15, [False, False]), (32, [True, True])):
        run = started(editor := Editor(edits, side=side))
        editor.before_call(run, call_of(run))
        assert [each.live for each in editor.selfs.values()] == live


def test_a_plan_that_changes_nothing_wakes_no_layer() -> None:
    for neutral in (
        Reweight("car", 1.0, cross_steps=0.0, self_steps=0.0),
        Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
    ):
        run = started(editor := Editor(plan(neutral)))
        editor.before_call(run, call_of(run))
        handlers = [*editor.cross.values(), *editor.selfs.values()]
        assert not any(handler.live for handler in handlers)


def test_a_phase_shares_what_its_steps_need() -> None:
    run = started(editor := Editor(plan(Replace("red", "blue", cross_steps=0.5))))
    steps = []
    for number in range(10):
        editor.before_call(run, call_of(run, number))
        steps.append(editor.cross[CROSS].step)
    assert all(step is steps[0] for step in steps[:5])
    assert steps[0] is not None
    assert steps[5:] == [None] * 5


def test_an_identical_mapping_needs_no_mixing() -> None:
    run = started(editor := Editor(plan(Replace("red", "blue"))))
    editor.before_call(run, call_of(run))
    step = editor.cross[CROSS].step
    assert step is not None
    assert (step.mix, step.owns) == (None, False)


def test_a_controlnets_call_changes_nothing() -> None:
    run = started(editor := Editor(plan(Replace("red", "blue"))))
    editor.before_call(run, call_of(run, component="controlnet."))
    assert not editor.cross[CROSS].live


def test_other_prompts_than_the_planned_are_refused() -> None:
    editor = Editor(plan(Replace("red", "blue")))
    editor.handlers([CROSS])
    with pytest.raises(ValueError, match=r"session\.prompts, .*it was called with \['a red car'\]"):
        editor.begin(sampling())


def test_nothing_of_a_run_is_left_at_its_end() -> None:
    run = started(editor := Editor(plan(Replace("red", "blue"))))
    editor.before_call(run, call_of(run))
    editor.end(run)
    assert editor.cross[CROSS].step is None
    assert editor.selfs[OWN].follow is None
    one = attention(4)
    assert editor.cross[CROSS].transform(one) is one


# -- a source that was kept ------------------------------------------------------------------------


def kept(steps: int = 10, **layers: Any) -> KeptSource:
    times = tuple(float(t) for t in range(steps, 0, -1))
    return KeptSource("a red car", 1, timesteps=times, layers=layers)


def test_a_kept_source_is_read_at_the_call_under_way() -> None:
    first, second, text = attention(1, seed=5), attention(1, seed=6), attention(1, 16, 16, seed=7)
    pairs = [(c.query, c.key) for c in (first, second)]
    source = KeptSource(
        "a red car",
        1,
        timesteps=(2.0, 1.0),
        layers={CROSS.name: pairs, OWN.name: [(text.query, text.key)] * 2},
    )
    edits = plan(Replace("red", "blue", cross_steps=1.0, self_steps=1.0))
    run = started(editor := Editor(edits, kept=source), steps=2)
    assert editor.texts == ["a blue car"]
    for number, of_source in enumerate((first, second)):
        one = attention(2)
        got = edited(editor, run, CROSS, number, one)
        close(got, torch.stack([dense(one)[0], dense(of_source)[0]]))
    own = attention(2, 16, 16)
    got = edited(editor, run, OWN, 1, own)
    close(got, torch.stack([dense(own)[0], dense(text)[0]]))


def test_a_kept_source_of_another_run_or_reach_is_refused() -> None:
    editor = Editor(plan(Replace("red", "blue")), kept=kept(steps=9))
    with pytest.raises(ValueError, match=r"drawn in 9 denoiser calls .* now has 10"):
        started(editor)
    editor = Editor(plan(Replace("red", "blue")), kept=kept(**{CROSS.name: []}))
    with pytest.raises(ValueError, match=r"reaches layer two\.attn1"):
        started(editor)


# -- where edits can act ---------------------------------------------------------------------------


class Sliced(nn.Module):
    """Stands for an attention module whose processor computes a few rows at a time."""

    class SlicedAttnProcessor:
        pass

    processor = SlicedAttnProcessor()


def test_layers_that_edits_do_not_know_are_refused() -> None:
    editor = Editor(plan(Refine("a red car")))
    with pytest.raises(ValueError, match="mid_block adds the text"):
        editor.handlers([CROSS, layer("mid_block", "added")])
    with pytest.raises(ValueError, match="no layers that attend to text"):
        editor.handlers([OWN])
    with pytest.raises(TypeError, match="SlicedAttnProcessor computes attention slice by slice"):
        editor.handlers([AttentionLayer("attn2", Sliced(), 2, "cross")])
    handlers = editor.handlers([CROSS, layer("controlnet.attn2", component="controlnet.")])
    assert list(handlers) == [CROSS]


def test_self_attention_follows_up_to_a_quarter_of_the_latents_side() -> None:
    limits = [area_limit(latent, None) for latent in ((64, 64), (128, 128), (66, 130), (8, 8))]
    assert limits == [256, 1024, 17 * 33, 256]
    assert area_limit((64, 64), 8) == 64


def test_the_middle_resolution_is_the_nearest_to_it() -> None:
    grids = [(64, 64), (32, 32), (16, 16), (8, 8)]
    assert middle_grid(grids, (64, 64), None) == (16, 16)
    assert middle_grid(grids[:2], (64, 64), None) == (32, 32)
    assert middle_grid(grids, (64, 64), 30) == (32, 32)
    assert middle_grid([(32, 32), (8, 8)], (64, 64), None) == (8, 8)  # as near: the smaller
