"""Edited runs of tiny pipelines, against explicit probabilities and against plain runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import dense, tiny
from xattn.api.edit import edit, sweep
from xattn.api.editing import editing
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight
from xattn.edits.plan import make_plan
from xattn.processors.call import AttentionCall
from xattn.processors.editing import CrossEditing, EditedCall, SelfEditing
from xattn.processors.forms import (
    CrossStep,
    EditedRows,
    on_probabilities,
    on_values,
)
from xattn.results.edit import EditResult
from xattn.session.loop import Loop
from xattn.text.prompt import Prompt
from xattn.text.tokenize import tokenize

CAR = "a red car on a green lawn"
BLUE = "a blue car on a green lawn"
STEPS = 5
QUIET: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent"}

Generator = Callable[..., torch.Generator]


def read(text: str) -> Prompt:
    return tokenize(_tokenizer, text)


_tokenizer = tiny.tokenizer()


def run(pipe: Any, *edits: Any, seed: int = 0, **options: Any) -> EditResult:
    generator = torch.Generator().manual_seed(seed)
    return edit(pipe, CAR, *edits, **({"generator": generator} | QUIET | options))


def plain(pipe: Any, prompt: str | list[str] = CAR, seed: int = 0, **options: Any) -> Tensor:
    seeds = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(seed) for _ in range(seeds)]
    images = pipe(prompt, **({"generator": generators} | QUIET | options)).images
    assert isinstance(images, Tensor)
    return images


def close(one: Tensor, two: Tensor) -> bool:
    """The same to the rounding of a guided run: 1e-5 of its size, some times over."""
    return bool((one - two).abs().max() <= 1e-4 * two.abs().max())


# -- against the definitions: schedulers and guidance; the edits in test_editing_definitions -----

NIGHT = "a red car on a green lawn at night"
BOARD = "a red skateboard on a green lawn"

CASES: dict[str, tuple[Any, str, Callable[[], dense.Sibling]]] = {
    "refine": (
        Refine(NIGHT, cross_steps=0.6),
        NIGHT,
        lambda: dense.Sibling(dense.by_insertion(read(CAR), read(NIGHT)), cross=(0.0, 0.6)),
    ),
    "local blend": (
        [Replace("car", "boat"), LocalBlend("car", subtract="red", threshold=0.85, start=0.4)],
        "a red boat on a green lawn",
        lambda: dense.Sibling(
            dense.identity(),
            blend=dense.Blend([3], [3], [2], [2], threshold=0.85, start=0.4),
        ),
    ),
}


TWICE = {"heun", "kdpm2"}


@pytest.mark.parametrize("scheduler", sorted(tiny.SCHEDULERS))
def test_every_scheduler_counts_steps_and_blends_once_in_each(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    pipe.scheduler.set_timesteps(STEPS)
    times = pipe.scheduler.timesteps.tolist()
    if scheduler in TWICE:
        steps = [call // 2 for call in range(len(times))]
    else:
        steps = [len(set(times[: call + 1])) - 1 for call in range(len(times))]
    steps.append(-1)
    edits, text, make = CASES["local blend"]
    reference = dense.Dense(
        [make()],
        steps[-2] + 1,
        (32, 32),
        step_of_call=steps.__getitem__,
        calls_of_step=steps.count,
    )
    want = reference.run(pipe, [CAR, text], 0, num_inference_steps=STEPS)
    got = run(pipe, edits)
    assert close(got.source, want[0])
    assert close(got.images[0], want[1])
    assert got.masks[0] is not None
    assert len(got.masks[0]) == steps[-2] + 1


def _own_call(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=m)


@pytest.mark.parametrize("last", [False, True], ids=["mixed", "edited rows last"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("owns", [False, True], ids=["follows", "owns"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("queries", [31, 32])
def test_both_forms_equal_the_definition(
    queries: int, images: int, owns: bool, masked: bool, last: bool
) -> None:
    torch.manual_seed(0)
    tokens = 77
    batch = 3 * images + (0 if last else 1)
    query, key, value = (
        torch.randn(3 * images + batch, 4, n, 16) for n in (queries, tokens, tokens)
    )
    mask = torch.randn(len(query), 1, 1, tokens) if masked else None
    made = make_plan(
        read(CAR),
        [
            [Replace("car", "skateboard"), Reweight("red", -2.0)],
            Refine(NIGHT) if owns else Replace("red", "blue"),
        ],
        read,
    )
    mix, own, _ = made.cross(0, 10)
    start = 3 * images
    rows = EditedRows.of([0, 1], images, start, torch.device("cpu"), batch=len(query))
    assert (rows.first is not None) == last
    per_row = [j for j in range(2) for _ in range(images)]
    step = CrossStep(rows, mix[per_row], own[per_row], bool(own.any()))
    logits = query @ key.transpose(-1, -2) / 4
    probs = (logits if mask is None else logits + mask).softmax(-1)
    want = probs.clone()
    for j in range(2):
        for i in range(images):
            row = start + (j + 1) * images + i
            want[row] = probs[start + i] @ mix[j] + probs[row] * own[j]
    untouched = [row for row in range(len(query)) if row not in rows.edited.tolist()]
    plain_out = _own_call(query, key, value, mask)
    call = AttentionCall(query, key, value, mask, 0.25, _own_call)
    editing_ = CrossEditing()
    editing_.step = step
    got = editing_.transform(call).output()
    values = on_values(call, step)
    explicit = on_probabilities(call, step, EditedCall(call, step, None).edited())
    assert torch.equal(got, explicit if queries < 32 else values)  # of 16 channels
    for form in (values, explicit):
        assert torch.allclose(form, want @ value, atol=1e-5)
        assert torch.allclose(form[untouched], plain_out[untouched], atol=1e-6)
    origin = query[rows.span], key[rows.span]
    if not masked:
        apart = CrossStep(
            replace(rows, sources=rows.sources - start, span=slice(0, images)),
            step.mix,
            step.own,
            step.owns,
        )
        for form in (
            on_values(call, apart, origin),
            on_probabilities(call, apart, EditedCall(call, apart, origin).edited()),
        ):
            assert torch.allclose(form, want @ value, atol=1e-5)


@pytest.mark.parametrize("form", ["values", "probabilities"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("follows", [False, True], ids=["mixes", "follows"])
@pytest.mark.parametrize("owns", [False, True], ids=["", "owns"])
def test_both_forms_have_the_gradients_of_finite_differences(
    form: str, masked: bool, follows: bool, owns: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(3, 2, n, 2, generator=g, dtype=torch.float64) for n in (2, 3, 3)]
    mask = torch.randn(1, 1, 1, 3, generator=g, dtype=torch.float64) if masked else None
    mix = None if follows else torch.rand(1, 3, 3, generator=g)
    if follows and owns:
        mix = torch.eye(3)[None]
    own_share = torch.rand(1, 3, generator=g) if owns else torch.zeros(1, 3)
    rows = EditedRows.of([0], 1, 1, torch.device("cpu"), batch=3)
    step = CrossStep(rows, mix, own_share, owns)

    def edited(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        call = AttentionCall(query, key, value, mask, 2**-0.5, _own_call)
        if form == "values":
            return on_values(call, step)
        return on_probabilities(call, step, EditedCall(call, step, None).edited())

    assert torch.autograd.gradcheck(edited, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("explicit", [False, True], ids=["", "explicit processors"])
@pytest.mark.parametrize(
    "edits", [Replace("red", "blue"), Reweight("red", 3.0), [Refine(NIGHT), Reweight("night", 2.0)]]
)
def test_an_edits_gradients_agree_with_finite_differences(edits: Any, explicit: bool) -> None:
    pipe = tiny.sd1().to(torch.float64)
    if explicit:
        pipe.unet.set_attn_processor(AttnProcessor())
    g = torch.Generator().manual_seed(0)
    where, way, weights = (
        torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64) for _ in range(3)
    )

    def value(latents: Tensor) -> Tensor:
        with own(pipe, edits) as session:
            states = encoded(pipe, session.prompts)[0]
            first = pipe.scheduler.timesteps[0]
            predicted: Tensor = pipe.unet(latents, first, states.detach()).sample
        return (predicted * weights).sum()

    where.requires_grad_()
    (gradient,) = torch.autograd.grad(value(where), where)
    with torch.no_grad():
        around = value(where + 1e-5 * way) - value(where - 1e-5 * way)
    expected = float(around) / 2e-5
    assert float((gradient * way).sum()) == pytest.approx(expected, rel=1e-5)


class LargestShapes(TorchDispatchMode):
    """Collects the shapes of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.shapes.add(tuple(one.shape))
        return result


def test_no_queries_by_queries_matrix_is_made_in_self_attention() -> None:
    layer = SelfEditing()
    layer.follow = EditedRows.of([0, 1], 1, 3, torch.device("cpu"))
    torch.manual_seed(0)
    query, key, value = (torch.randn(6, 2, 1024, 16) for _ in range(3))

    with LargestShapes() as seen:
        got = layer.transform(AttentionCall(query, key, value, None, 0.25, _own_call)).output()
    assert not [s for s in seen.shapes if list(s).count(1024) > 1]
    assert (6, 2, 1024, 16) in seen.shapes  # it does look
    probs = (query @ key.transpose(-1, -2) / 4).softmax(-1)
    probs[4] = probs[5] = probs[3]
    assert torch.allclose(got, probs @ value, atol=1e-5)


def test_no_queries_by_queries_matrix_is_made_in_a_whole_edit() -> None:
    pipe = tiny.sd1()
    with LargestShapes() as seen:
        run(pipe, [Replace("red", "blue", self_steps=1.0), LocalBlend("car")], side=32,
            num_inference_steps=2)  # fmt: skip
    assert not [s for s in seen.shapes if list(s).count(1024) > 1]


# -- what changes nothing -------------------------------------------------------------------------


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


# -- randomness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "lcm"])
def test_all_rows_draw_the_sources_noise(scheduler: str) -> None:
    pipe = tiny.sd1(scheduler)
    options = {"eta": 1.0} if scheduler == "ddim" else {}
    got = run(pipe, [], Replace("red", "blue", cross_steps=0.0, self_steps=0.0), **options)
    assert torch.equal(got.images[0], got.source)
    assert close(got.source, plain(pipe, CAR, **options)[0])
    assert close(got.images[1], plain(pipe, BLUE, **options)[0])


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_the_generator_is_left_where_a_plain_run_leaves_it(
    scheduler: str, generator: Generator
) -> None:
    pipe, one, two = tiny.sd1(scheduler), generator(3), generator(3)
    pipe(CAR, generator=one, **QUIET)
    edit(pipe, CAR, Replace("red", "blue"), generator=two, **QUIET)
    assert torch.equal(one.get_state(), two.get_state())


def test_without_a_generator_torchs_own_is_used() -> None:
    pipe = tiny.sd1()
    torch.manual_seed(7)
    want, after = pipe(CAR, **QUIET).images, torch.rand(3)
    torch.manual_seed(7)
    got = edit(pipe, CAR, Replace("red", "blue"), **QUIET)
    assert close(got.source, want[0])
    assert torch.equal(torch.rand(3), after)


def test_several_seeds_give_a_result_each(generator: Generator) -> None:
    pipe = tiny.sd1()
    edits = [Replace("red", "blue"), [Refine(NIGHT), LocalBlend("car", threshold=0.8)]]
    got = run(pipe, *edits, generator=[generator(1), generator(2)])
    assert len(got.seeds) == 2
    assert got.seeds[0] is got
    for seed, one in zip((1, 2), got.seeds, strict=True):
        alone = run(pipe, *edits, seed=seed)
        assert close(one.source, alone.source)
        assert all(close(a, b) for a, b in zip(one.images, alone.images, strict=True))
        assert one.masks[0] is None
        assert one.masks[1] is not None
        assert alone.masks[1] is not None
        assert torch.equal(one.masks[1], alone.masks[1])


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_one_generator_for_several_images_draws_as_in_a_plain_run(
    scheduler: str, generator: Generator
) -> None:
    pipe, one, two = tiny.sd1(scheduler), generator(3), generator(3)
    want = pipe(CAR, generator=one, num_images_per_prompt=3, **QUIET).images
    got = edit(
        pipe, CAR, Replace("red", "blue"), [], generator=two, num_images_per_prompt=3, **QUIET
    )
    for i, single in enumerate(got.seeds):
        assert close(single.source, want[i])
        assert torch.equal(single.images[1], single.source)
    assert torch.equal(one.get_state(), two.get_state())


def test_latents_of_the_users_own_are_shared(generator: Generator) -> None:
    pipe = tiny.sd1()
    latents = torch.randn(1, 4, 32, 32, generator=generator(9))
    got = run(pipe, [], Replace("red", "blue"), latents=latents)
    assert close(got.source, plain(pipe, CAR, latents=latents)[0])
    assert torch.equal(got.images[0], got.source)


# -- chains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_a_kept_source_gives_the_same_edits_without_being_sampled_again(
    scheduler: str, generator: Generator
) -> None:
    pipe = tiny.sd1(scheduler)
    twins = [generator(1), generator(2)]
    edits = [
        Refine(NIGHT),
        [Replace("car", "skateboard"), LocalBlend("car", subtract="red", threshold=0.8)],
        [Replace("red", "blue"), Reweight("blue", -1.0)],
    ]
    want = run(pipe, *edits, generator=[generator(1), generator(2)])
    first = run(pipe, [], generator=twins, keep_source=True)
    assert first.kept is not None
    assert first.kept.nbytes > 0
    batches: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    got = edit(pipe, CAR, *edits, source=first)
    hook.remove()
    assert set(batches) == {2 * 3 * 2}  # guided, three siblings, two seeds: no source
    for one, two in zip(got.seeds, want.seeds, strict=True):
        assert close(one.source, two.source)
        assert all(close(a, b) for a, b in zip(one.images, two.images, strict=True))
        assert one.masks[1] is not None
        assert two.masks[1] is not None
        assert torch.equal(one.masks[1], two.masks[1])
    assert got.trace is None


def test_a_source_is_kept_alone_bit_for_bit_and_edited_later(generator: Generator) -> None:
    pipe = tiny.sd1()
    edits = [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]
    want = run(pipe, edits)
    alone = run(pipe, keep_source=True)
    assert torch.equal(alone.source, pipe(CAR, generator=generator(), **QUIET).images[0])
    assert alone.images == ()
    assert alone.prompts == (CAR,)
    assert alone.trace is not None
    assert alone.trace.prompts == (CAR,)
    assert str(alone.plan) == f"source: {CAR}"
    seen: list[int] = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return {}

    first = edit(pipe, CAR, edits, source=alone, callback_on_step_end=watch, keep_source=True)
    second = edit(pipe, CAR, edits, source=first)
    for got in (first, second):
        assert torch.equal(got.source, alone.source)
        assert close(got.images[0], want.images[0])
    assert seen == list(range(STEPS))
    pictures = run(pipe, keep_source=True, output_type="pil", num_inference_steps=1)
    assert pictures.strip(64).width >= 64


def test_callbacks_are_not_kept_with_a_source() -> None:
    seen: list[int] = []

    def watch(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return {}

    pipe = tiny.sd1()
    kept = run(pipe, keep_source=True, callback_on_step_end=watch, num_inference_steps=2)
    edit(pipe, CAR, Replace("red", "blue"), source=kept)
    assert seen == [0, 1]


def test_the_bytes_of_a_kept_source_are_known_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, asked = tiny.sd1(), []
    monkeypatch.setattr(
        "xattn.instruments.keeper.check_room_for", lambda what, nbytes, *_: asked.append(nbytes)
    )
    options = {"height": 64, "width": 96, "generator": [torch.Generator(), torch.Generator()]}
    kept = run(pipe, keep_source=True, **options).kept
    assert kept is not None
    twice = sum(  # the text's keys, of which one call's stay
        (len(calls) - 1) * calls[0][1].nbytes
        for name, calls in kept.layers.items() if name.endswith("attn2")
    )  # fmt: skip
    assert twice > 0
    assert asked == [kept.nbytes + twice]


def test_a_source_that_does_not_fit_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    monkeypatch.setattr("xattn.records.room.free_bytes", lambda *_: (40_000, "the device"))
    with pytest.raises(MemoryError, match=r"keeping the source takes .* 40\.0 kB free; draw fewer"):
        run(pipe, keep_source=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pipe: setattr(pipe, "unet", tiny.sd1().unet), "by another UNet"),
        (lambda pipe: pipe.to(dtype=torch.bfloat16), "in torch.float32, and the UNet is now in"),
        (
            lambda pipe: setattr(pipe, "scheduler", tiny.make_scheduler("euler")),
            "with DDIMScheduler, and the pipeline has EulerDiscreteScheduler",
        ),
        (
            lambda pipe: setattr(
                pipe, "scheduler", type(pipe.scheduler).from_config(
                    pipe.scheduler.config, beta_start=0.001
                )
            ),
            "with another beta_start",
        ),
    ],
)  # fmt: skip
def test_a_kept_source_is_for_the_model_and_the_scheduler_it_was_made_by(
    change: Callable[[Any], Any], says: str
) -> None:
    pipe = tiny.sd1("ddim")
    kept = run(pipe, num_inference_steps=1, keep_source=True)
    change(pipe)
    pipe.unet.forward = never
    with pytest.raises(ValueError, match=f"source was drawn {says}.*keep_source=True"):
        edit(pipe, CAR, Replace("red", "blue"), source=kept)


def test_a_kept_source_is_for_its_schedule(generator: Generator) -> None:
    pipe = tiny.sd1("ddim")
    kept = run(pipe, num_inference_steps=2, keep_source=True)
    assert kept.kept is not None
    kept.kept.options["num_inference_steps"] = 3
    pipe.unet.conv_in.forward = never
    with pytest.raises(ValueError, match="in 2 denoiser calls from timestep 501"):
        edit(pipe, CAR, Replace("red", "blue"), source=kept)


def test_a_kept_source_refuses_what_it_can_not_give() -> None:
    pipe = tiny.sd1()
    plain_ = run(pipe, [], num_inference_steps=1)
    with pytest.raises(ValueError, match="keep_source=True"):
        edit(pipe, CAR, [], source=plain_)
    kept = run(pipe, [], num_inference_steps=1, keep_source=True)
    with pytest.raises(ValueError, match="belongs to the prompt"):
        edit(pipe, BLUE, [], source=kept)
    with pytest.raises(ValueError, match="num_inference_steps: the seed and options"):
        edit(pipe, CAR, [], source=kept, num_inference_steps=3)
    with pytest.raises(ValueError, match=r"trace=.*nothing is recorded"):
        edit(pipe, CAR, [], source=kept, trace={"words": ["car"]})
    with pytest.raises(ValueError, match="nothing to edit"):
        edit(pipe, CAR, source=kept)
    with pytest.raises(ValueError, match="side=32 reaches layer"):
        edit(pipe, CAR, Replace("red", "blue"), source=kept, side=32)


# -- pipelines ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"negative_prompt": "a dog"},
        {"height": 64, "width": 96},
        {"guidance_rescale": 0.5},
    ],
)
def test_plain_options_go_to_all_rows(options: dict[str, Any]) -> None:
    pipe = tiny.sd1()
    got = run(pipe, Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
              [Replace("car", "boat"), LocalBlend("car", threshold=0.8)], **options)  # fmt: skip
    assert close(got.source, plain(pipe, CAR, **options)[0])
    assert close(got.images[0], plain(pipe, BLUE, **options)[0])
    assert not close(got.images[1], got.source)
    assert got.masks[1] is not None
    assert tuple(got.masks[1].shape[1:]) == tuple(got.source.shape[1:])


def test_an_unguided_edit_follows_its_definition() -> None:
    edits, text, make = CASES["refine"]
    reference = dense.Dense([make()], STEPS, (32, 32), guided=False)
    pipe = tiny.sd1()
    options = {"num_inference_steps": STEPS, "guidance_scale": 1.0}
    want = reference.run(pipe, [CAR, text], 0, **options)
    got = run(pipe, edits, **options)
    assert close(got.images[0], want[1])


def test_guidance_may_end_midway() -> None:
    pipe = tiny.sd1()

    def cut(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    options = {
        "callback_on_step_end": cut,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    still = Replace("red", "blue", cross_steps=0.0, self_steps=0.0)
    got = run(pipe, still, [Refine(NIGHT), LocalBlend("car", threshold=0.8)], **options)
    want = plain(pipe, [CAR, BLUE, NIGHT], **options)
    assert torch.equal(got.source, want[0])
    assert torch.equal(got.images[0], want[1])


def picture(seed: int = 0) -> Image.Image:
    noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise.numpy() * 255).astype("uint8"))


@pytest.mark.parametrize("family", ["sd1_img2img", "sdxl_img2img", "sd1_inpaint", "sdxl_inpaint"])
def test_images_can_be_the_base(family: str) -> None:
    pipe = getattr(tiny, family)("euler_ancestral")
    options: dict[str, Any] = {"image": picture(), "strength": 0.7}
    if "inpaint" in family:
        options["mask_image"] = Image.fromarray(
            ((torch.arange(64 * 64).reshape(64, 64) % 64 > 30).numpy() * 255).astype("uint8")
        )
    edits = [
        [],
        Replace("red", "blue", cross_steps=0.0, self_steps=0.0),
        [Replace("red", "blue"), LocalBlend("car", threshold=0.8)],
    ]
    got = run(pipe, *edits, num_inference_steps=6, **options)
    alone = {"num_inference_steps": 6} | options
    assert torch.equal(got.images[0], got.source)
    assert not close(got.images[2], got.source)
    if family.startswith("sd1"):  # SDXL's tiny twin blows rounding up
        assert close(got.source, plain(pipe, CAR, **alone)[0])
    alone |= {name: [alone[name]] * 4 for name in ("image", "mask_image") if name in alone}
    want = plain(pipe, [CAR, CAR, BLUE, BLUE], **alone)
    assert torch.equal(got.source, want[0])
    assert torch.equal(got.images[1], want[2])


def test_explicit_processors_are_edited_alike() -> None:
    one, two = tiny.sd1(), tiny.sd1()
    two.unet.set_attn_processor(AttnProcessor())
    edits = [
        Replace("car", "skateboard", cross_steps=(0.2, 0.7), self_steps=(0.4, 1.0)),
        [Refine(NIGHT), Reweight({"night": 0.0, "lawn": -0.5})],
        CASES["local blend"][0],
    ]
    first, second = run(one, *edits), run(two, *edits)
    for a, b in zip(first.images, second.images, strict=True):
        assert close(a, b)
    assert type(two.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor) is (
        AttnProcessor
    )
    assert first.trace is not None
    assert second.trace is not None
    mine, theirs = first.trace.heatmap("red", 0), second.trace.heatmap("red", 0)
    assert torch.allclose(torch.tensor(mine.array), torch.tensor(theirs.array), atol=1e-3)


def test_lora_and_ip_adapter_stay_in_place() -> None:
    pipe = tiny.sd1()
    tiny.add_lora(pipe)
    embeds = tiny.load_ip_adapter(pipe)
    still = Replace("red", "blue", cross_steps=0.0, self_steps=0.0)
    got = run(pipe, still, Replace("red", "blue"), ip_adapter_image_embeds=embeds)
    assert close(got.source, plain(pipe, CAR, ip_adapter_image_embeds=embeds)[0])
    assert close(got.images[0], plain(pipe, BLUE, ip_adapter_image_embeds=embeds)[0])
    assert not close(got.images[1], got.images[0])


def test_perturbed_attention_guidance_keeps_its_rows() -> None:
    pipe = tiny.pag()
    got = run(pipe, [], Replace("red", "blue"), pag_scale=3.0)
    assert close(got.source, plain(pipe, CAR, pag_scale=3.0)[0])
    assert torch.equal(got.images[0], got.source)


def test_controlnets_are_run_as_they_are() -> None:
    pipe = tiny.controlnet()
    got = run(pipe, [], Replace("red", "blue"), image=picture())
    assert close(got.source, plain(pipe, CAR, image=picture())[0])
    assert torch.equal(got.images[0], got.source)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_edited_in_its_own_dtype(dtype: torch.dtype) -> None:
    pipe = tiny.sd1().to(dtype=dtype)
    got = run(pipe, [], Replace("red", "blue"), [Refine(NIGHT), LocalBlend("car")])
    assert got.source.dtype == dtype
    assert torch.equal(got.images[0], got.source)
    assert all(bool(torch.isfinite(image).all()) for image in got.images)


# -- results --------------------------------------------------------------------------------------


def test_a_users_mask_keeps_everything_outside_exactly() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:40, 8:48] = True
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
    options = {"generator": generator(), "num_inference_steps": 3}
    got = sweep(pipe, CAR, "red", [-1, 0, 1, 2], **options)
    assert got.labels == ("red x -1", "red x 0", "red x 1", "red x 2")
    assert got.images[2].tobytes() == got.source.tobytes()
    assert got.images[0].tobytes() != got.source.tobytes()
    assert got.strip(64).width > 4 * 64


# -- the lower door -------------------------------------------------------------------------------


def encoded(pipe: Any, texts: list[str], each: int = 1) -> tuple[Tensor, Tensor]:
    """Gives the embeddings of prompts, each several times over, and of empty ones."""
    states, negative = pipe.encode_prompt(texts, "cpu", each, True)
    return states, negative


def loop(
    pipe: Any,
    blend: Callable[[Tensor], Tensor],
    states: Tensor,
    negative: Tensor | None = None,
    noise: Tensor | None = None,
    passes: int = 1,
) -> Tensor:
    """Samples the rows of some embeddings, guided where there are negative ones."""
    scheduler, each = pipe.scheduler, 1 if noise is None else len(noise)
    if noise is None:
        noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(STEPS)
    latents = noise.repeat(len(states) // each, 1, 1, 1) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            if negative is None:
                predicted = pipe.unet(latents, t, states).sample
            else:
                if passes == 1:
                    both = pipe.unet(torch.cat([latents] * 2), t, torch.cat([negative, states]))
                    low, high = both.sample.chunk(2)
                else:
                    high = pipe.unet(latents, t, states).sample
                    low = pipe.unet(latents, t, negative).sample
                predicted = low + 7.5 * (high - low)
            latents = blend(scheduler.step(predicted, t, latents).prev_sample)
    return latents


def own(pipe: Any, *edits: Any, **options: Any) -> Any:
    """Edits a loop of one's own."""
    pipe.scheduler.set_timesteps(STEPS)
    said = {name: options.pop(name) for name in ("rows", "embeds", "images") if name in options}
    own_loop = Loop(pipe.unet, tokenizer=pipe.tokenizer, scheduler=pipe.scheduler, **said)
    return editing(own_loop, CAR, *edits, **options)


def unchanged(latents: Tensor) -> Tensor:
    return latents


@pytest.mark.parametrize("guided", [False, True])
def test_a_loop_of_ones_own_equals_edit(guided: bool) -> None:
    pipe = tiny.sd1()
    edits = [Refine(NIGHT), [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]]
    want = run(pipe, *edits, guidance_scale=7.5 if guided else 1.0)
    with own(pipe, *edits) as session:
        states, negative = encoded(pipe, session.prompts)
        latents = loop(pipe, session.blend, states, negative if guided else None)
    for one, two in zip(latents, [want.source, *want.images], strict=True):
        assert close(one, two)
    assert session.trace is not None
    assert session.masks[0] is None
    assert session.masks[1] is not None
    assert session.masks[1].shape == (STEPS, 1, 32, 32)


@pytest.mark.parametrize("guided", [False, True])
def test_two_seeds_in_a_loop_of_ones_own_are_edited_apart(guided: bool) -> None:
    pipe = tiny.sd1()
    edits = [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    seeds = []
    for images, drawn in [(2, noise), (1, noise[:1]), (1, noise[1:])]:
        with own(pipe, edits, images=images) as session:
            states, negative = encoded(pipe, session.prompts, images)
            seeds.append(loop(pipe, session.blend, states, negative if guided else None, drawn))
    together, *alone = seeds
    for seed, one in enumerate(alone):
        assert close(together[[seed, 2 + seed]], one)
    assert not close(together[2], together[0])


@pytest.mark.parametrize(
    ("edits", "images", "actual", "guided", "says"),
    [
        (Replace("red", "blue"), 1, 2, True, "8 rows; 2 prompts x images=1 are 2, or 4"),
        (Replace("red", "blue"), 1, 2, False, "embeddings differ: .* correct images="),
        (Replace("red", "blue"), 2, 1, True, "embeddings differ: .* correct images="),
        (Replace("red", "blue"), 2, 1, False, "2 rows; 2 prompts x images=2 are 4, or 8"),
        (Reweight("red", 2.0), 1, 2, False, "both halves .* set images="),
        (Reweight("red", 2.0), 2, 1, True, "embeddings differ: .* correct images="),
    ],
)
def test_a_batch_of_other_images_than_were_said_is_refused_before_anything_is_edited(
    edits: Any, images: int, actual: int, guided: bool, says: str
) -> None:
    pipe = tiny.sd1()
    states, negative = encoded(pipe, [CAR, BLUE if isinstance(edits, Replace) else CAR], actual)
    calls: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=says), own(pipe, edits, images=images) as session:
        loop(pipe, session.blend, states, negative if guided else None)
    handle.remove()
    assert calls == []


def test_rows_and_embeds_say_which_rows_are_edited() -> None:
    pipe = tiny.sd1()
    edits = [Replace("red", "blue"), LocalBlend("car", threshold=0.8)]
    states, negative = encoded(pipe, [CAR, BLUE])
    with own(pipe, edits) as session:
        want = loop(pipe, session.blend, states, negative)
    with own(pipe, edits, rows=slice(2, 4)) as session:
        assert torch.equal(loop(pipe, session.blend, states, negative), want)
    with own(pipe, edits, embeds=states) as session:
        assert close(loop(pipe, session.blend, states, negative, passes=2), want)
    with pytest.raises(RuntimeError, match="needs embeds="), own(pipe, edits) as session:
        loop(pipe, session.blend, states, negative, passes=2)
    with pytest.raises(ValueError, match="embeds has 4 rows; 2 prompts x images=1 are 2"):
        own(pipe, edits, embeds=states.repeat(2, 1, 1)).__enter__()
    with pytest.raises(ValueError, match="correct rows="), own(pipe, edits, rows=slice(1, 4)):
        loop(pipe, unchanged, states, negative)


BLENDED: list[Any] = [Replace("red", "blue"), LocalBlend("car", start=0.0)]


def blends_but_the_last(session: Any) -> Callable[[Tensor], Tensor]:
    """Blends after each step of a loop but its last."""
    done = 0

    def blend(latents: Tensor) -> Tensor:
        nonlocal done
        done += 1
        return session.blend(latents) if done < STEPS else latents

    return blend


def test_a_loop_that_never_blends_is_an_error_at_its_second_step() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    with pytest.raises(RuntimeError, match=r"step 0 .* session\.blend"), own(pipe, BLENDED):
        loop(pipe, unchanged, states)


def test_a_loop_that_leaves_out_the_last_blend_is_an_error_at_the_blocks_end() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    with pytest.raises(RuntimeError, match="step 4"), own(pipe, BLENDED) as session:
        loop(pipe, blends_but_the_last(session), states)


def test_an_error_of_the_users_is_not_hidden_by_the_blend_that_it_left_out() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    done = 0

    def interrupted(latents: Tensor) -> Tensor:
        nonlocal done
        done += 1
        if done == STEPS:
            raise KeyboardInterrupt
        return session.blend(latents)

    with pytest.raises(KeyboardInterrupt), own(pipe, BLENDED) as session:
        loop(pipe, interrupted, states)


def test_a_loop_with_nothing_to_blend_needs_no_blend() -> None:
    pipe = tiny.sd1()
    states, _ = encoded(pipe, [CAR, BLUE])
    with own(pipe, Replace("red", "blue")) as session:
        got = loop(pipe, unchanged, states)
    assert session.trace is not None
    assert session.trace.run.done == STEPS
    assert not close(got[1], got[0])


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_pipeline_called_without_the_callback_is_an_error_and_can_be_called_again(
    steps: int,
) -> None:
    pipe = tiny.sd1()
    asked: dict[str, Any] = QUIET | {"num_inference_steps": steps}
    with editing(pipe, CAR, BLENDED) as session:
        with pytest.raises(RuntimeError, match=r"callback_on_step_end=session\.callback"):
            pipe(session.prompts, **asked)
        pipe(session.prompts, callback_on_step_end=session.callback, **asked)
    assert session.masks[0] is not None
    assert len(session.masks[0]) == steps


def test_a_blend_that_was_left_out_leaves_the_processors_as_they_were() -> None:
    pipe = tiny.sd1()
    before = dict(pipe.unet.attn_processors)
    states, _ = encoded(pipe, [CAR, BLUE])
    with pytest.raises(RuntimeError), own(pipe, BLENDED):
        loop(pipe, unchanged, states)
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


class Waits(TorchDispatchMode):
    """Counts what waits for a device, and what is copied to one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "equal", "lift_fresh"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("edits", [
    [Replace("red", "blue"), LocalBlend("car", subtract="lawn")],
    [Refine(NIGHT), LocalBlend(mask=torch.ones(32, 32), start=0.0)],
])  # fmt: skip
def test_no_step_waits_for_the_device_but_the_first_of_its_phase(edits: Any) -> None:
    pipe = tiny.sd1()
    unet, blends, handlers = pipe.unet, [], []
    with own(pipe, edits) as session:
        states, _ = encoded(pipe, session.prompts)
        editor = session._block.instruments[0]
        waits: list[list[str]] = []

        def called(*args: Any) -> Any:
            handlers.append(next(iter(editor.cross.values())).step)
            return original(*args)

        def blend(latents: Tensor) -> Tensor:
            blends.append(session.blend(latents))
            return blends[-1]

        original = unet.forward
        pipe.scheduler.set_timesteps(STEPS)
        latents = torch.randn(2, 4, 32, 32)
        unet.forward = called
        try:
            with torch.no_grad():
                for t in pipe.scheduler.timesteps:
                    with Waits() as mode:
                        predicted = unet(latents, t, states).sample
                    stepped = pipe.scheduler.step(predicted, t, latents).prev_sample
                    with mode:
                        latents = blend(stepped)
                    waits.append(mode.found)
        finally:
            del unet.forward
    # self-attention follows in steps 0 and 1, cross-attention in steps 0 to 3
    assert handlers[0] is handlers[1] is handlers[3] is not None
    assert waits[1] == waits[3] == []
    assert waits[0]


def test_a_pipeline_can_be_called_inside_editing(generator: Generator) -> None:
    pipe = tiny.sd1()
    edits = [[Replace("red", "blue"), LocalBlend("car", threshold=0.8)]]
    want = run(pipe, *edits)
    with editing(pipe, CAR, *edits) as session:
        twins = [generator(), generator()]
        got = pipe(
            session.prompts, generator=twins, callback_on_step_end=session.callback, **QUIET
        ).images
        assert close(got[1], want.images[0])
        with pytest.raises(ValueError, match=r"session\.prompts"):
            pipe("a dog", **QUIET)


def test_blending_is_for_the_whole_batch(generator: Generator) -> None:
    pipe = tiny.sd1()

    def wrong(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": session.blend(tensors["latents"][:1])}

    with (
        editing(pipe, CAR, [Replace("red", "blue"), LocalBlend("car")]) as session,
        pytest.raises(ValueError, match="1 rows"),
    ):
        pipe(session.prompts, callback_on_step_end=wrong, **QUIET)


def test_the_users_callback_is_called_after_the_blend() -> None:
    seen: list[tuple[int, bool]] = []
    mask = torch.zeros(32, 32, dtype=torch.bool)

    def look(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors["latents"]
        seen.append((index, torch.equal(latents[0], latents[1])))
        return {}

    edits = [Replace("red", "blue"), LocalBlend(mask=mask, start=0.4)]
    run(tiny.sd1(), edits, callback_on_step_end=look)
    assert seen == [(0, False), (1, False), (2, True), (3, True), (4, True)]


# -- what can't work says so ----------------------------------------------------------------------


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("sampling has begun")


@pytest.mark.parametrize(
    ("edits", "options", "says"),
    [
        ([], {}, "nothing to edit"),
        ([Replace("gold", "blue")], {}, "'gold' is not in the prompt"),
        ([Replace("red", "very blue")], {}, "use Refine"),
        ([LocalBlend("car")], {}, "edits nothing"),
        (
            [[Replace("red", "blue"), LocalBlend(mask=torch.ones(5, 7))]],
            {},
            "mask is 5 x 7 .*64 x 64 or the latents' 32 x 32",
        ),
        ([[]], {"prompt_embeds": torch.zeros(1, 77, 32)}, "prompt_embeds= cannot be edited"),
        ([[]], {"prompt_2": "a dog"}, "prompt_2"),
        ([[]], {"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts"),
        ([[]], {"latents": torch.zeros(3, 4, 32, 32)}, "latents has 3 rows"),
        ([[]], {"generator": [torch.Generator()] * 2, "num_images_per_prompt": 3}, "2 generators"),
        ([[]], {"trace": {"wrods": ["car"]}}, "'wrods' is none of"),
        ([[]], {"trace": {"words": ["gold"]}}, "'gold' is not in the prompt"),
        ([[]], {"trace": {"layers": []}}, "layers=\\[\\] records nothing"),
        ([[]], {"side": 0}, "side=0 must be a whole number"),
        ([[]], {"side": 16.0}, "side=16.0 must be a whole number"),
        ([[]], {"image": Image.new("RGB", (64, 64))}, "image= is not an option .*image-to-image"),
        ([[]], {"guidance_scal": 3.0}, r"guidance_scal= .* did you mean guidance_scale\b"),
        ([[]], {"nonsense": 1}, r"nonsense= is not an option of StableDiffusionPipeline$"),
        (
            [[Replace("red", "blue"), LocalBlend("car", start=0.9)]],
            {},
            r"start=0\.9 never acts in a run of 5 steps, whose last begins at 0\.8",
        ),
        (
            [[Replace("red", "blue"), LocalBlend(mask=torch.ones(32, 32))]],
            {"num_inference_steps": 1},
            r"start=0\.2 never acts in a run of 1 step, whose last begins at 0: ",
        ),
    ],
)
def test_bad_requests_are_refused_before_sampling(
    edits: list[Any], options: dict[str, Any], says: str
) -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(ValueError, match=says):
        run(pipe, *edits, **options)
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


@pytest.mark.parametrize("start", [0.0, 0.5, 0.75])
def test_a_blend_that_acts_in_the_last_step_alone_is_drawn(start: float) -> None:
    edits = [Replace("red", "blue"), LocalBlend(mask=torch.zeros(32, 32), start=start)]
    steps = 1 if start == 0.0 else 4
    result = run(tiny.sd1(), edits, num_inference_steps=steps)
    assert torch.equal(result.images[0], result.source)


def test_options_that_a_subclass_hands_on_are_the_pipelines() -> None:
    from diffusers import StableDiffusionPipeline

    class HandsOn(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    pipe = tiny.sd1(cls=HandsOn)
    assert run(pipe, [], guidance_scale=3.0, num_inference_steps=1).images
    with pytest.raises(ValueError, match="image= is not an option of HandsOn"):
        run(pipe, [], image=Image.new("RGB", (64, 64)))


def test_a_misspelt_option_of_a_sweep_is_refused() -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    with pytest.raises(ValueError, match="did you mean num_inference_steps"):
        sweep(pipe, CAR, "red", [2.0], num_inference_step=3)


def test_sliced_attention_is_refused_with_advice() -> None:
    pipe = tiny.sd1()
    pipe.enable_attention_slicing(1)
    pipe.unet.forward = never
    with pytest.raises(TypeError, match="disable_attention_slicing"):
        run(pipe, Replace("red", "blue"))


def test_pipelines_without_text_cross_attention_are_refused() -> None:
    class Other:
        pass

    with pytest.raises(TypeError, match="Other has no denoiser with a text encoder"):
        edit(Other(), CAR, Replace("red", "blue"))
    with pytest.raises(TypeError, match="for a UNet"):
        edit(tiny.unet(), CAR, Replace("red", "blue"))
    with pytest.raises(ValueError, match="text and image in one call"), editing(
        Loop(tiny.added_kv_unet(), tokenizer=_tokenizer, scheduler=tiny.make_scheduler()), CAR, []
    ):  # fmt: skip
        pass
    with pytest.raises(TypeError, match=r"xattn\.Loop"), editing(tiny.unet(), CAR, []):
        pass
    with pytest.raises(ValueError, match="needs its scheduler"), editing(
        Loop(tiny.unet(), tokenizer=_tokenizer), CAR, []
    ):  # fmt: skip
        pass
