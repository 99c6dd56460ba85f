"""The recorder alone: a made-up run, attention of random numbers, and no denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes import Doubling, attention, call_of, dense, layer, sampling
from xattn.instruments.recorder import Recorder
from xattn.models.family import AttentionLayer
from xattn.processors.call import AttentionCall
from xattn.processors.chain import Chain
from xattn.records.options import Options
from xattn.records.run import Run
from xattn.session.sampling import Sampling

OUTER, INNER = layer("outer.attn2"), layer("mid_block.attn2", depth=1)
OWN, CONTROL = layer("outer.attn1", "self"), layer("controlnet.attn2", component="controlnet.")
LAYERS = [OUTER, OWN, INNER, CONTROL]
WORDS = slice(1, 4)  # "a red car"


def recorder(**options: Any) -> Recorder:
    made = Recorder(Options.of(dtype=torch.float32, **options), [])
    made.handlers(LAYERS)
    return made


def attended(recorder: Recorder, run: Sampling, number: int = 0) -> dict[AttentionLayer, Tensor]:
    """Make one denoiser call; return for each layer the conditional rows' probabilities."""
    call = call_of(run, number)
    recorder.before_call(run, call)
    made = {}
    for n, (each, recording) in enumerate(recorder.recordings.items()):
        queries = run.grid(each)[0] * run.grid(each)[1]
        one = attention(len(run.sample), queries, seed=10 * number + n)
        recording.transform(one)
        made[each] = dense(one)[call.conditional[0]]
    recorder.after_call(run, call)
    return made


def maps_of(probs: Tensor, grid: tuple[int, int], words: Any = WORDS) -> Tensor:
    return probs[..., words].transpose(-1, -2).unflatten(-1, grid)


def test_the_maps_of_every_step_layer_and_head_are_the_softmax() -> None:
    made = recorder(keep=("step", "layer", "head"))
    run = sampling(latent=(4, 2))
    made.begin(run)
    calls = [attended(made, run, number) for number in range(3)]
    made.end(run)
    (kept,) = made.runs
    assert kept is run.run
    assert [each.name for each in kept.layers] == [OUTER.name, INNER.name]
    assert [each.grid for each in kept.layers] == [(4, 2), (2, 1)]
    assert (kept.done, kept.timesteps) == (3, (30.0, 20.0, 10.0))
    for n, each in enumerate((OUTER, INNER)):
        want = torch.stack([maps_of(probs[each], run.grid(each)) for probs in calls])
        torch.testing.assert_close(kept.maps(n), want)


def test_dropped_axes_are_means() -> None:
    run = sampling(latent=(2, 2))
    for keep in (("layer",), ("step",), ()):
        made = Recorder(Options.of(keep=keep, dtype=torch.float32), [])
        two = [layer("one.attn2"), layer("two.attn2")]
        made.handlers(two)
        made.begin(run)
        calls = [attended(made, run, number) for number in range(3)]
        made.end(run)
        want = torch.stack(
            [torch.stack([maps_of(p[each], (2, 2)).mean(1, True) for each in two]) for p in calls]
        )  # (steps, layers, images, 1, tokens, height, width)
        want = want if "step" in keep else want.mean(0, keepdim=True)
        want = want if "layer" in keep else want.mean(1, keepdim=True)
        assert len(made.runs[0].layers) == want.shape[1]
        for n in range(want.shape[1]):
            torch.testing.assert_close(made.runs[0].maps(n), want[:, n])


def test_only_the_words_asked_for_are_kept() -> None:
    made, run = recorder(words=["a", "car"], keep=("step", "layer", "head")), sampling()
    made.begin(run)
    probs = attended(made, run)[OUTER]
    assert run.run is not None
    assert run.run.positions == (1, 3)
    assert run.run.done == 1
    torch.testing.assert_close(run.run.maps(0)[0], maps_of(probs, (2, 2), torch.tensor([1, 3])))


def test_a_word_that_is_not_there_makes_no_run() -> None:
    made = recorder(words="boat")
    with pytest.raises(ValueError, match="'boat'"):
        made.begin(run := sampling())
    assert (made.runs, run.run) == ([], None)
    made.end(run)


@pytest.mark.parametrize(
    ("wanted", "edited", "chosen"),
    [
        (None, False, [OUTER, INNER]),
        ("outer", False, [OUTER]),
        ("controlnet.*", False, [CONTROL]),
        (["outer", "controlnet.*"], False, [OUTER, CONTROL]),
        ("*attn2", False, [OUTER, INNER]),
        (None, True, [OUTER, INNER]),
    ],
)
def test_layers_are_chosen_by_name(wanted: Any, edited: bool, chosen: Any) -> None:
    made = Recorder(Options.of(layers=wanted), [], edited=edited)
    assert list(made.handlers(LAYERS)) == chosen


def test_a_components_calls_aim_its_own_layers() -> None:
    made, run = recorder(layers=["*attn2", "controlnet.*"]), sampling()
    made.begin(run)
    made.before_call(run, call_of(run, component="controlnet."))
    assert [each.live for each in made.recordings.values()] == [False, False, True]
    made.before_call(run, call_of(run))
    assert all(each.live for each in made.recordings.values())


def test_a_handler_does_nothing_outside_of_a_run() -> None:
    made, run = recorder(), sampling()
    made.begin(run)
    attended(made, run)
    made.end(run)
    for recording in made.recordings.values():
        assert recording.buffer is None
        recording.observe(attention())


def test_runs_are_kept_one_after_another() -> None:
    made = recorder()
    for _ in range(2):
        run = sampling()
        made.begin(run)
        attended(made, run)
        made.end(run)
    assert [run.done for run in made.runs] == [1, 1]
    assert made.runs[0].maps(0).data_ptr() != made.runs[1].maps(0).data_ptr()


def test_steps_of_a_loop_without_a_scheduler_end_where_the_next_begin() -> None:
    made, run = recorder(keep=("step", "layer", "head")), sampling(schedule=None)
    made.begin(run)
    probs = []
    for number, (timestep, begins) in enumerate([(30, True), (30, False), (20, True)]):
        call = call_of(run, number, timestep=timestep, begins_step=begins)
        made.before_call(run, call)
        one = attention(queries=4, seed=number)
        made.recordings[OUTER].transform(one)
        made.after_call(run, call)
        probs.append(maps_of(dense(one)[1:], (2, 2)))
    assert run.run is not None
    assert run.run.done == 1  # the second may have calls to come
    made.end(run)
    assert (run.run.done, run.run.timesteps) == (2, (30.0, 20.0))
    want = torch.stack([(probs[0] + probs[1]) / 2, probs[2]])
    torch.testing.assert_close(run.run.maps(0), want)


def test_rows_that_guidance_lost_are_empty() -> None:
    run = sampling(("a red car", "blue"))
    made = recorder(keep=("step", "layer", "head"))
    made.begin(run)
    for number, spans in enumerate([(slice(1, 2), slice(0, 1)), (slice(0, 1),)]):
        call = call_of(run, number, conditional=spans)
        call.sample = run.sample[:2] if number == 0 else run.sample[:1]
        made.before_call(run, call)
        for each, recording in made.recordings.items():
            recording.transform(attention(call.rows, run.grid(each)[0] * run.grid(each)[1]))
        made.after_call(run, call)
    made.end(run)
    assert run.run is not None
    first, second = run.run.maps(0)
    assert first[0].any()
    assert first[1].any()
    assert second[0].any()
    assert not second[1].any()


def test_attention_of_other_rows_or_queries_is_refused() -> None:
    made, run = recorder(), sampling()
    made.begin(run)
    made.before_call(run, call_of(run))
    with pytest.raises(RuntimeError, match=r"attends with \(3, 2\) .* has \(2, 2\)"):
        made.recordings[OUTER].observe(attention(rows=3))
    with pytest.raises(RuntimeError, match="5 queries, but a grid of"):
        made.recordings[OUTER].observe(attention(queries=5))


def test_an_edit_before_the_recorder_is_in_what_it_keeps() -> None:
    made, run = recorder(keep=("step", "layer", "head")), sampling()
    edit, one = Doubling(), attention()
    made.begin(run)
    made.before_call(run, call_of(run))
    edit.live = True
    chain = Chain(OUTER.name, 2, [edit, made.recordings[OUTER]])
    chain.wake()
    chain.attend(one)
    made.after_call(run, call_of(run))
    edited = AttentionCall(2 * one.query, one.key, one.value, None, 0.5, one.own)
    assert run.run is not None
    torch.testing.assert_close(run.run.maps(0)[0], maps_of(dense(edited)[1:], (2, 2)))


def test_gradients_are_not_kept() -> None:
    made, run, one = recorder(), sampling(), attention()
    made.begin(run)
    made.before_call(run, call_of(run))
    made.recordings[OUTER].transform(
        AttentionCall(one.query.requires_grad_(), one.key, one.value, None, 0.5, one.own)
    )
    made.after_call(run, call_of(run))
    assert run.run is not None
    assert not run.run.maps(0).requires_grad


def test_what_others_keep_and_know_goes_into_the_run(tmp_path: Path) -> None:
    run = sampling(facts={"model": "made up"})
    run.estimates, run.affinity = torch.zeros(1), torch.ones(1)
    made = recorder(to=tmp_path)
    made.begin(run)
    attended(made, run)
    made.end(run)
    made.pictures(run, ["picture"], ended=False)
    (kept,) = made.runs
    assert isinstance(kept, Run)
    assert kept.info["model"] == "made up"
    assert kept.estimates is run.estimates
    assert kept.affinity is run.affinity
    assert kept.images == ["picture"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["run-00000"]
