"""The image's attention to itself: kept exactly, the image unchanged, and used to refine maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

import xattn
from tests import tiny
from tests.runs import make_run
from xattn.instruments import affinity
from xattn.maps import daam, refine
from xattn.models import family_of
from xattn.records import room
from xattn.results.trace import Trace

CAR = "a red car"


def draw(pipe: Any, **options: Any) -> Any:
    given = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return pipe(CAR, generator=generator, **{**given, **options}).images


class Watching(AttnProcessor):
    """Appends the probabilities of self-attention, (batch x heads, queries, queries)."""

    def __init__(self, seen: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self.seen = seen

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        compute = attn.get_attention_scores

        def scores(query: Tensor, key: Tensor, mask: Any = None) -> Tensor:
            probs: Tensor = compute(query, key, mask)
            self.seen.setdefault(probs.shape[1], []).append(probs)
            return probs

        attn.get_attention_scores = scores
        try:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        finally:
            del attn.get_attention_scores


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("options", [{}, {"height": 24, "guidance_scale": 1.0}], ids=["", "wide"])
def test_it_is_the_mean_over_heads_layers_and_calls(family: str, options: Any) -> None:
    pipe = getattr(tiny, family)()
    plain, before = draw(pipe, **options), dict(pipe.unet.attn_processors)
    with xattn.record(pipe, affinity=True) as trace:
        image = draw(pipe, **options)
    assert torch.equal(image, plain)
    assert all(pipe.unet.attn_processors[name] is before[name] for name in before)
    found = trace.run.affinity
    assert found is not None
    assert found.dtype == torch.float16
    height, width = found.shape[1:3]
    assert found.shape == (1, height, width, height, width)
    assert height * width <= affinity.CELLS
    seen: dict[int, list[Tensor]] = {}
    watching = Watching(seen)
    names = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(
        {name: watching if ".attn1." in name else AttnProcessor() for name in names}
    )
    draw(pipe, **options)
    known = family_of(pipe.unet)
    own = [each for each in known.layers(pipe.unet) if each.role == "self"]
    heads = next(
        each.heads for each in own if known.grid(each, trace.run.latent) == (height, width)
    )
    layers = [probs.unflatten(0, (-1, heads))[-1].mean(0) for probs in seen[height * width]]
    want = torch.stack(layers).mean(0).view(height, width, height, width)
    torch.testing.assert_close(found[0].float(), want, atol=2e-4, rtol=2e-3)


def test_its_bytes_are_known_before_the_first_step() -> None:
    pipe, known = tiny.sd1(), []

    def look(pipe: Any, step: int, timestep: Any, tensors: Any) -> Any:
        known.append(trace.nbytes)
        return tensors

    with xattn.record(pipe, affinity=True) as trace:
        draw(pipe, callback_on_step_end=look)
    affinity = trace.run.affinity
    assert affinity is not None
    assert set(known) == {trace.nbytes} == {trace.run.store.nbytes + affinity.nbytes}


def test_a_run_cut_short_has_the_mean_of_what_it_saw() -> None:
    pipe, calls = tiny.sd1(), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    pipe.unet.mid_block.register_forward_hook(fail)  # some layers of the second call have been
    with pytest.raises(KeyboardInterrupt), xattn.record(pipe, affinity=True) as trace:
        draw(pipe)
    assert trace.run.affinity is not None
    sums = trace.run.affinity.float().sum((-1, -2))
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=5e-3, rtol=0)


def test_several_images_have_their_own() -> None:
    pipe = tiny.sd1()
    with xattn.record(pipe, affinity=True) as trace:
        draw(pipe, num_images_per_prompt=2)
    affinity = trace.run.affinity
    assert affinity is not None
    assert len(affinity) == 2
    assert not torch.equal(affinity[0], affinity[1])
    refined = [trace.heatmap("car", image, refined=True) for image in range(2)]
    assert not torch.equal(torch.tensor(refined[0].array), torch.tensor(refined[1].array))


def test_a_refined_map_is_each_cells_mean_over_what_it_attends_to() -> None:
    run = make_run(latent=(8, 12))
    shares = torch.rand(1, 8, 12, 8, 12)
    run.affinity = shares / shares.sum((-1, -2), keepdim=True)
    trace = Trace([run])
    plain = torch.tensor(trace.heatmap("red").array)
    refined = torch.tensor(trace.heatmap("red", refined=True).array)
    for i, j in ((0, 0), (3, 7), (7, 11)):
        want = float((run.affinity[0, i, j] * plain).sum())
        assert float(refined[i, j]) == pytest.approx(want, rel=1e-5)
    even = torch.full((1, 8, 12), 0.25)
    torch.testing.assert_close(refine.refined(run, even, 0), even)


def test_a_coarser_grid_refines_too() -> None:
    run = make_run(latent=(8, 12))
    run.affinity = torch.eye(24).view(1, 4, 6, 4, 6)
    tokens = torch.rand(2, 8, 12)
    small = torch.nn.functional.avg_pool2d(tokens, 2)
    torch.testing.assert_close(refine.refined(run, tokens, 0), daam.to_grid(small, (8, 12)))


@pytest.mark.parametrize("folder", [False, True])
def test_it_is_saved_and_loaded(tmp_path: Path, folder: bool) -> None:
    pipe = tiny.sd1()
    to: dict[str, Any] = {"to": tmp_path / "maps"} if folder else {}
    with xattn.record(pipe, affinity=True, **to) as trace:
        draw(pipe)
    path = tmp_path / "maps" if folder else tmp_path / "run.safetensors"
    if not folder:
        trace.save(path)
    loaded = xattn.load(path)
    assert torch.equal(loaded.run.affinity, trace.run.affinity)
    assert (
        loaded.heatmap("red", refined=True).array == trace.heatmap("red", refined=True).array
    ).all()
    (extra,) = [*tmp_path.rglob("affinity.safetensors")] or [path]
    data = bytearray(extra.read_bytes())
    data[-1] ^= 1
    extra.write_bytes(data)
    with pytest.raises(ValueError, match="has changed"):
        xattn.load(path)


def test_sliced_attention_has_the_affinities_of_whole_attention() -> None:
    pipe = tiny.sd1()
    with xattn.record(pipe, affinity=True) as whole:
        draw(pipe)
    pipe.enable_attention_slicing(1)
    with xattn.record(pipe, affinity=True) as sliced:
        draw(pipe)
    assert whole.run.affinity is not None
    torch.testing.assert_close(sliced.run.affinity, whole.run.affinity, atol=2e-3, rtol=0)


def test_what_can_not_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.sd1()
    with pytest.raises(ValueError, match=r"record with affinity=True"):
        Trace([make_run()]).heatmap("red", refined=True)
    with (
        pytest.raises(ValueError, match="negative=True cannot be combined"),
        xattn.record(pipe, affinity=True, negative=True),
    ):
        pass
    usual = room.check_room_for
    monkeypatch.setattr(room, "free_bytes", lambda *_: (10_000_000, "here"))
    monkeypatch.setattr(affinity, "check_room_for", lambda w, n, d: usual(w, 100 * n, d))
    with (
        pytest.raises(MemoryError, match=r"affinities take .* and here has 10\.0 MB free"),
        xattn.record(pipe, affinity=True),
    ):
        draw(pipe)
