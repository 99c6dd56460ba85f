"""Edits of joint attention against the dense reference: each call, and whole runs.

Bounds as in ``test_editing_definitions``: 1e-5 for a float32 attention call, and 1e-5 of the
latents' size for a run, whose steps hand their rounding on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests import fakes
from tests.dense import Blend, Partners, Sibling, by_words, then
from tests.joint_dense import JointDense, Layout, aligned, joined
from tests.tiny import tokenizer
from tests.tiny import transformers as tiny
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight
from xattn.edits.plan import EditPlan, make_plan
from xattn.edits.timing import JOINT
from xattn.processors.call import AttentionCall, Place
from xattn.processors.forms import EditedRows
from xattn.processors.joint import JointStep
from xattn.processors.joint_editing import JointEditing, JointKeeping
from xattn.processors.joint_source import KeptJoints
from xattn.results.edit import EditResult
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize

SOURCE = "a red zebra on a lawn"  # zebra has five of CLIP's tokens, one of T5's
CAR, NIGHT = "a red car on a lawn", "a red zebra on a lawn at night"
BOAT = "a red boat on a lawn"
STEPS, T5, CLIP = 3, 16, 77
CALL = RUN = 1e-5

_clip, _t5 = tokenizer(), tiny.t5_tokenizer()


def clip(text: str) -> Prompt:
    return tokenize(_clip, text)


def t5(text: str) -> Prompt:
    return tokenize(_t5, text, max_length=T5)


class Axis:
    """A token axis of one encoder or two: how texts stand on it, by library and by definition."""

    def __init__(self, *read: Any, length: int) -> None:
        self.stretches, self.length = read, length

    def partners(self, rule: Any, one: str, two: str) -> Partners:
        return joined(*(rule(r(one), r(two)) for r in self.stretches), length=self.length)

    def at(self, text: str, *words: str) -> list[int]:
        found, offset = [], 0
        for read in self.stretches:
            prompt = read(text)
            found += [p + offset for w in prompt.words if w.text in words for p in w.positions]
            offset += prompt.length
        return found

    def read(self, text: str) -> Prompt:
        first, *others = (read(text) for read in self.stretches)
        for other in others:
            first = first.beside(other, first.length)
        return first


BOTH, ALONE = Axis(clip, t5, length=CLIP + T5), Axis(t5, length=T5)
ZEROS = Axis(clip, length=CLIP + 4)  # as SD3 without its T5

Case = tuple[Any, str, Any]
CASES: dict[str, Case] = {
    "a word replaced": (
        Replace("zebra", "car", cross_steps=0.7, self_steps=0.4),
        CAR,
        lambda a: Sibling(a.partners(by_words, SOURCE, CAR), (0, 0.7), (0, 0.4)),
    ),
    "text's columns alone": (
        Replace("zebra", "car", cross_steps=1.0, self_steps=0.0),
        CAR,
        lambda a: Sibling(a.partners(by_words, SOURCE, CAR), (0, 1), (0, 0)),
    ),
    "layout alone": (
        Replace("zebra", "car", cross_steps=0.0, self_steps=(0.3, 1.0)),
        CAR,
        lambda a: Sibling(a.partners(by_words, SOURCE, CAR), (0, 0), (0.3, 1)),
    ),
    "words added": (
        Refine(NIGHT, cross_steps=1.0, self_steps=0.4),
        NIGHT,
        lambda a: Sibling(a.partners(aligned, SOURCE, NIGHT), (0, 1), (0, 0.4)),
    ),
    "words weighted": (
        Reweight({"zebra": -2.0, "lawn": 3.0}, cross_steps=0.4, self_steps=0.0),
        SOURCE,
        lambda a: Sibling(
            a.partners(by_words, SOURCE, SOURCE),
            (0, 0.4),
            (0, 0),
            weights=dict.fromkeys(a.at(SOURCE, "zebra"), -2.0)
            | dict.fromkeys(a.at(SOURCE, "lawn"), 3.0),
        ),
    ),
    "two edits, a word's own window": (
        [
            Replace("zebra", "car", cross_steps=0.4, self_steps=0.0, word_steps={"car": (0.3, 1)}),
            Refine("a red car on a lawn at night"),
            Reweight("night", 2.0),
        ],
        "a red car on a lawn at night",
        lambda a: Sibling(
            _composed(a),
            (0, 0.4),
            (0, 0),
            word_windows=dict.fromkeys(a.at(f"{CAR} at night", "car"), (0.3, 1)),
            weights=dict.fromkeys(a.at(f"{CAR} at night", "night"), 2.0),
        ),
    ),
    "blended": (
        [
            Replace("zebra", "boat", cross_steps=0.7, self_steps=0.4),
            LocalBlend("boat", threshold=0.9, subtract="lawn"),
        ],
        BOAT,
        lambda a: Sibling(
            a.partners(by_words, SOURCE, BOAT),
            (0, 0.7),
            (0, 0.4),
            blend=Blend(
                a.at(SOURCE, "zebra"),
                a.at(BOAT, "boat"),
                a.at(SOURCE, "lawn"),
                a.at(BOAT, "lawn"),
                threshold=0.9,
            ),
        ),
    ),
}


def _composed(axis: Axis) -> Partners:
    first = axis.partners(by_words, SOURCE, CAR)
    return then(first, axis.partners(aligned, CAR, f"{CAR} at night"))


# -- one attention call ---------------------------------------------------------------------------

IMAGE = 20


def layout(axis: Axis, *, text_first: bool) -> Layout:
    text, image = axis.length, IMAGE
    if text_first:
        return Layout(slice(0, text), slice(text, text + image))
    return Layout(slice(image, image + text), slice(0, image))


def joint_call(where: Layout, rows: int, **other: Any) -> AttentionCall:
    positions = where.text.stop - where.text.start + IMAGE
    place = Place(where.image, where.text, where.image)
    call = fakes.attention(rows, positions, positions, **other)
    call.query = 3 * call.query  # flat attention would prove little
    call.locate = lambda queries, keys: (place,) * rows
    return call


def step_of(plan: EditPlan, images: int, start: int, step: int, *, kept: bool = False) -> Any:
    """What the editor sets up in a layer: the edit of the text's columns, and who follows."""
    mapping, own, weights, active = plan.columns(step, STEPS)
    how: dict[str, Any] = {"kept": kept, "batch": start + images * (len(active) + 1 - kept)}
    chosen = [j for j, now in enumerate(active) if now]
    follow = [j for j, now in enumerate(plan.self_(step, STEPS)) if now]
    device, per_row = torch.device("cpu"), [j for j in chosen for _ in range(images)]
    rows = EditedRows.of(follow, images, start, device, **how) if follow else None
    if not chosen:
        return None, rows
    made = JointStep(
        EditedRows.of(chosen, images, start, device, **how),
        mapping[per_row],
        own[per_row],
        weights[per_row],
        bool(mapping[chosen].any()),
        bool(own[chosen].any()),
    )
    return made, rows


def planned(axis: Axis, names: Sequence[str]) -> EditPlan:
    edits = [CASES[name][0] for name in names]
    how: dict[str, Any] = {"length": axis.length, "shares": JOINT}
    return make_plan(axis.read(SOURCE), edits, axis.read, **how)


@pytest.mark.parametrize("text_first", [False, True])
@pytest.mark.parametrize("axis", [BOTH, ALONE, ZEROS], ids=["two encoders", "one", "zeros"])
def test_each_call_follows_the_definitions(axis: Axis, text_first: bool) -> None:
    where, images, start = layout(axis, text_first=text_first), 2, 2
    plan = planned(axis, list(CASES))
    dense = JointDense(
        [case[2](axis) for case in CASES.values()], STEPS, (4, 5), images=images, layout=where
    )
    dense.guided, rows = False, images * (1 + len(CASES))
    for step in range(STEPS):
        call = joint_call(where, start + rows, seed=step)
        dense.call = step
        tail = [t[start:] for t in (call.query, call.key, call.value)]
        want = dense.output(*tail)
        handler = JointEditing()
        handler.step, handler.follow = step_of(plan, images, start, step)
        with torch.no_grad():
            got = handler.transform(call)
            assert apart(got.output()[start:], want) <= CALL
            plain = fakes.own()(call.query, call.key, call.value, None)
            assert torch.equal(got.output()[: start + images], plain[: start + images])
            maps = got.maps(slice(start, start + rows), slice(None)).mean(1)
        (layers,) = dense.maps[step].values()
        assert apart(maps.transpose(1, 2), layers[0]) <= CALL


def test_chunks_kept_sources_and_gradients_give_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where, names = layout(ALONE, text_first=True), list(CASES)
    plan, rows = planned(ALONE, names), 1 + len(names)
    call = joint_call(where, rows)
    handler, keeping = JointEditing(), JointKeeping()
    keeping.rows = slice(0, 1)
    with torch.no_grad():
        handler.step, handler.follow = step_of(plan, 1, 0, 0)
        want = handler.transform(call)
        keeping.observe(call)
        probs = want.probabilities(slice(0, rows))
        assert apart(probs @ call.value, want.output()) <= CALL
        image = probs[..., where.image, where.image].mean(1)
        assert apart(want.affinity(slice(0, rows)), image) <= CALL

        siblings = AttentionCall(
            *(t[1:] for t in (call.query, call.key, call.value)), None, call.scale, call.own,
            lambda queries, keys: call.locate(queries, keys)[1:],  # type: ignore[misc, index]
        )  # fmt: skip
        handler.kept = KeptJoints(keeping.calls)
        handler.step, handler.follow = step_of(plan, 1, 0, 0, kept=True)
        got = handler.transform(siblings)
        assert apart(got.output(), want.output()[1:]) <= CALL
        tokens = torch.tensor([0, 5, 3])
        assert apart(got.maps(slice(0, rows - 1), tokens), want.maps(slice(1, rows), tokens)) < CALL

        handler.kept = None
        handler.step, handler.follow = step_of(plan, 1, 0, 0)
        monkeypatch.setattr("xattn.processors.joint._CHUNK", 2 * T5 * rows * 3)
        assert apart(handler.transform(call).output(), want.output()) <= CALL

    call.query.requires_grad_()
    made = handler.transform(call).output()
    assert apart(made.detach(), want.output()) <= CALL
    (slope,) = torch.autograd.grad(made[1:].sum(), call.query)
    assert bool(slope[0, :, where.image].any())  # the source's queries act on its siblings


def test_half_precision_follows_within_its_rounding() -> None:
    where, names = layout(ALONE, text_first=False), list(CASES)
    plan, rows = planned(ALONE, names), 1 + len(names)
    call, handler = joint_call(where, rows), JointEditing()
    handler.step, handler.follow = step_of(plan, 1, 0, 0)
    half = [t.bfloat16() for t in (call.query, call.key, call.value)]
    with torch.no_grad():
        again = AttentionCall(*(t.float() for t in half), None, call.scale, call.own, call.locate)
        got = AttentionCall(*half, None, call.scale, call.own, call.locate)
        want, one = handler.transform(again).output(), handler.transform(got).output()
    assert one.dtype == torch.bfloat16
    bound = 2 * torch.finfo(torch.bfloat16).eps * max(1.0, float(want.abs().max()))
    assert apart(one.float(), want) <= bound


# -- whole runs -----------------------------------------------------------------------------------


def apart(one: Tensor, two: Tensor) -> float:
    assert one.shape == two.shape
    return float((one.double() - two.double()).abs().max())


SMALL: dict[str, Any] = {
    "height": 32,
    "width": 48,
    "num_inference_steps": STEPS,
    "max_sequence_length": T5,
}


def run(pipe: Any, *edits: Any, prompt: str = SOURCE, **options: Any) -> EditResult:
    generator = torch.Generator().manual_seed(0)
    more: dict[str, Any] = {"generator": generator, "output_type": "latent", "trace": False}
    return xattn.edit(pipe, prompt, *edits, **(SMALL | more | options))


def plain(pipe: Any, prompts: Sequence[str], **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    more: dict[str, Any] = {"generator": generators, "output_type": "latent"}
    images = pipe(list(prompts), **(SMALL | more | options)).images
    assert isinstance(images, Tensor)
    return images


def sd3(**options: Any) -> Any:
    config = {"num_layers": 2, "dual_attention_layers": (0,)}
    return tiny.sd3(transformer=tiny.sd3_transformer(**config), **options)


def flux() -> Any:
    return tiny.flux(transformer=tiny.flux_transformer(num_layers=1, num_single_layers=1))


SOME = ("a word replaced", "words added", "blended")
PASSES: dict[str, Any] = {"negative_prompt": "a cat", "true_cfg_scale": 2.0}
PIPES: dict[str, tuple[Any, Axis, tuple[str, ...], dict[str, Any]]] = {
    "SD3.5": (sd3, BOTH, SOME, {}),
    "FLUX": (flux, ALONE, ("two edits, a word's own window", *SOME), {}),
    "FLUX, two passes": (flux, ALONE, ("blended",), PASSES),
}


@pytest.mark.parametrize("name", PIPES)
def test_runs_follow_the_definitions(name: str) -> None:
    make, axis, names, options = PIPES[name]
    pipe, cases = make(), [CASES[each] for each in names]
    text_first = axis is ALONE
    image = 8 * 12
    text = slice(0, axis.length) if text_first else slice(image, image + axis.length)
    where = Layout(text, slice(text.stop, text.stop + image) if text_first else slice(0, image))
    made = JointDense(
        [case[2](axis) for case in cases], STEPS, (16, 24), guided=not text_first, layout=where
    )
    prompts = [SOURCE, *(case[1] for case in cases)]
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    given = dict(options)
    if options:
        given["negative_prompt"] = ["a cat"] * len(prompts)
    want = made.latents(pipe, prompts, generator=generators, **SMALL, **given)
    got = run(pipe, *(case[0] for case in cases), **options)
    size = float(want.abs().max())
    alone = plain(pipe, prompts, **given)
    assert torch.equal(got.source, alone[0])
    for n, (label, one) in enumerate(zip(names, got.images, strict=True), start=1):
        assert apart(one, want[n]) <= RUN * size, label
        assert apart(one, alone[n]) > 100 * RUN * size, f"{label} has no effect"
    (masks,) = (mask for mask in got.masks if mask is not None)
    assert torch.equal(masks[-1], made.masks[-1][-1])
    assert 0.01 < float(masks[-1].float().mean()) < 0.99


# -- invariants -----------------------------------------------------------------------------------

TWO: dict[str, Any] = {"num_inference_steps": 2}


@pytest.mark.parametrize("make", [sd3, flux])
def test_edits_that_change_nothing_are_the_plain_batch_bit_for_bit(make: Any) -> None:
    pipe = make()
    before = dict(pipe.transformer.attn_processors)
    nothing = [[], Reweight("red", 1.0), Replace("zebra", "car", cross_steps=0.0, self_steps=0.0)]
    got = run(pipe, *nothing, Replace("zebra", "car"), trace=True, **TWO)
    want = plain(pipe, [SOURCE, SOURCE, SOURCE, CAR, CAR], **TWO)
    for one, two in zip([got.source, *got.images[:3]], want[:4], strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(got.images[3], want[4])
    after = pipe.transformer.attn_processors
    assert all(after[name] is processor for name, processor in before.items())
    assert got.trace is not None
    assert got.trace.heatmap("car", 4).array.max() > 0


@pytest.mark.parametrize("make", [sd3, flux])
def test_a_kept_source_gives_the_same_siblings_and_chains(make: Any) -> None:
    pipe = make()
    edits = [
        [Replace("zebra", "car", cross_steps=1.0), LocalBlend("car", threshold=0.9)],
        Reweight("red", 3.0),
    ]
    seeds = [torch.Generator().manual_seed(n) for n in (0, 1)]
    want = run(pipe, *edits, generator=seeds, **TWO)
    seeds = [torch.Generator().manual_seed(n) for n in (0, 1)]
    kept = run(pipe, keep_source=True, generator=seeds, **TWO)
    assert kept.kept is not None
    chain = xattn.edit(pipe, SOURCE, edits[1], source=kept)
    got = xattn.edit(pipe, SOURCE, *edits, source=chain)
    for one, two, alone in zip(got.seeds, want.seeds, kept.seeds, strict=True):
        assert apart(alone.source, two.source) <= RUN * 20
        for a, b, mine, theirs in zip(one.images, two.images, one.masks, two.masks, strict=True):
            assert apart(a, b) <= RUN * 20
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


def test_each_image_follows_its_own_source() -> None:
    pipe, edit = flux(), Replace("zebra", "car", cross_steps=1.0, self_steps=1.0)
    seeds = [torch.Generator().manual_seed(n) for n in (0, 1)]
    both = run(pipe, edit, generator=seeds, **TWO)
    alone = run(pipe, edit, generator=torch.Generator().manual_seed(1), **TWO)
    assert apart(both[1].images[0], alone.images[0]) <= RUN * 20
    assert apart(both[0].images[0], both[1].images[0]) > 0.1


def test_edits_act_in_the_layers_asked_for() -> None:
    pipe, edit = flux(), Replace("zebra", "car", self_steps=1.0)
    everywhere = run(pipe, edit, **TWO)
    named = run(pipe, edit, layers=["transformer_blocks.0.attn", "single*"], **TWO)
    one = run(pipe, edit, layers="transformer_blocks.0", **TWO)
    assert torch.equal(everywhere.images[0], named.images[0])
    assert apart(everywhere.images[0], one.images[0]) > 1e-3
    with pytest.raises(ValueError, match="layers='double' does not match any layer; the layers"):
        run(pipe, edit, layers="double")


def test_a_sweep_passes_through_the_source() -> None:
    got = xattn.sweep(
        flux(), SOURCE, "red", [0.0, 1.0, 3.0], generator=torch.Generator().manual_seed(0),
        output_type="latent", trace=False, **SMALL | TWO,
    )  # fmt: skip
    assert torch.equal(got.images[1], got.source)
    assert apart(got.images[0], got.images[2]) > 1e-3


def test_a_word_beyond_the_runs_text_is_refused_before_it_is_drawn() -> None:
    pipe = flux()
    before = dict(pipe.transformer.attn_processors)
    with pytest.raises(xattn.WordError, match="'lawn' was cut off at 5 tokens"):
        run(pipe, Reweight("lawn", 2.0), max_sequence_length=5)
    assert all(pipe.transformer.attn_processors[n] is each for n, each in before.items())


def test_the_plan_is_of_the_runs_own_text() -> None:
    got = run(sd3(), Replace("zebra", "car", self_steps=0.4), **TWO)
    assert got.plan.length == CLIP + T5
    text = str(got.plan)
    assert "the image's queries and keys follow the source in [0, 0.4)" in text
    assert "text's columns" in text
    assert got.plan.siblings[0].prompt.positions("car") == tuple(BOTH.at(CAR, "car"))


def test_masks_of_other_prompts_and_other_places_are_said() -> None:
    where, plan = layout(ALONE, text_first=True), planned(ALONE, list(CASES)[:1])
    call, handler = joint_call(where, 2), JointEditing()
    handler.step, handler.follow = step_of(plan, 1, 0, 0)
    longer = Place(slice(18, 36), slice(0, 18), slice(18, 36))
    call.locate = lambda queries, keys: (Place(where.image, where.text, where.image), longer)
    with pytest.raises(RuntimeError, match="prompts of one length"):
        handler.transform(call)
    call = joint_call(where, 2, mask=torch.ones(2, 1, 1, T5 + IMAGE, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="cannot be kept with masked attention"):
        JointKeeping().observe(call)


def test_masked_keys_are_left_out_of_source_and_sibling() -> None:
    where, names = layout(ALONE, text_first=True), list(CASES)[:2]
    plan, rows, short = planned(ALONE, names), 1 + len(names), T5 - 4
    shorter = Axis(t5, length=short)
    mask = torch.ones(rows, 1, 1, T5 + IMAGE, dtype=torch.bool)
    mask[..., short:T5] = False
    call, handler = joint_call(where, rows, mask=mask), JointEditing()
    handler.step, handler.follow = step_of(plan, 1, 0, 0)
    few = Layout(slice(0, short), slice(short, short + IMAGE))
    there = [*range(short), *range(T5, T5 + IMAGE)]
    dense = JointDense(
        [CASES[name][2](shorter) for name in names], STEPS, (4, 5), guided=False, layout=few
    )
    dense.call = 0
    for sibling in dense.siblings:  # what is masked has no attention to give
        columns = sibling.partners[:short]
        sibling.partners = [c and {w: x for w, x in c.items() if w < short} for c in columns]
    want = dense.output(*(t[:, :, there] for t in (call.query, call.key, call.value)))
    with torch.no_grad():
        got = handler.transform(call).output()
    assert apart(got[:, :, there], want) <= CALL
