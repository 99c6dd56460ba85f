"""Methods of flow matching against references written from the papers, with a function for a model.

A reference here walks plain lists of levels, and knows nothing of rows, hooks or pipelines.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests.api.test_photographs import PROMPT, picture
from tests.inversion.test_methods import STEPS, Model, clean, flow, laid_out
from tests.tiny.transformers import sd3
from xattn.inversion.fireflow import Midpoints
from xattn.inversion.flowedit import Difference
from xattn.inversion.methods import METHODS, cost_of
from xattn.inversion.solver import Solver
from xattn.inversion.uniedit import Fusion


def curved(x: Tensor, t: float) -> Tensor:
    return torch.sin(x) + t / 1000


def levels() -> list[float]:
    scheduler = flow()
    scheduler.set_timesteps(STEPS)
    return [float(s) for s in scheduler.sigmas]


def walked(solver: Solver, model: Model, latents: Tensor) -> list[Tensor]:
    """What a pipeline does with a solver, whose denoiser reads what the solver makes of it."""
    seen = []
    for t in solver.timesteps:
        latents = solver.step(model(solver.entering(latents), float(t)), t, latents)[0]
        seen.append(latents)
    return seen


def ahead(x: Tensor, sigmas: list[float], part: float) -> list[Tensor]:
    """FireFlow's (part 1/2) and Uni-Inv's (part 1) steps along some levels."""
    velocity, places = curved(x, 1000 * sigmas[0]), [x]
    for now, then in pairwise(sigmas):
        h = then - now
        velocity = curved(x + part * h * velocity, 1000 * (now + part * h))
        x = x + h * velocity
        places.append(x)
    return places


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_predictions_ahead_are_made_with_the_velocity_before_both_ways(part: float) -> None:
    up = laid_out(Midpoints(flow(), up=True, part=part))
    walked(up, curved, clean())
    expected = ahead(clean(), levels()[::-1], part)
    for number, place in enumerate(expected[1:], 1):
        torch.testing.assert_close(up.pivots[STEPS - number], place)
    down = laid_out(Midpoints(flow(), up=False, part=part))
    seen = walked(down, curved, expected[-1])
    torch.testing.assert_close(seen[0], expected[-1])  # the first call ends no step
    torch.testing.assert_close(seen[-1], ahead(expected[-1], levels(), part)[-1])
    assert len(seen) == STEPS + 1


def test_midpoints_lead_back_more_closely_than_euler_at_one_more_call() -> None:
    def back(path: Callable[[Tensor, list[float]], Tensor]) -> float:
        there = path(clean(), levels()[::-1])
        return float((path(there, levels()) - clean()).abs().max())

    def euler(x: Tensor, sigmas: list[float]) -> Tensor:
        for now, then in pairwise(sigmas):
            x = x + (then - now) * curved(x, 1000 * now)
        return x

    def middle(x: Tensor, sigmas: list[float]) -> Tensor:
        return ahead(x, sigmas, 0.5)[-1]

    assert back(middle) < back(euler) / 3
    assert cost_of(METHODS["fireflow"], 10, 100, 7).calls == 11


def prompted(x: Tensor, t: float) -> Tensor:
    """A model of three rows: the source's prompt, and two others."""
    return torch.cat([curved(x[:1], t), 0.5 * x[1:2] + t / 500, torch.cos(x[2:])])


def test_flowedit_moves_the_picture_by_the_difference_of_velocities() -> None:
    x, sigmas = clean(), levels()
    noises = [clean(seed) for seed in range(1, STEPS + 1)]
    q = [(1 - s) * x + s * e for s, e in zip(sigmas, [*noises, x], strict=True)]
    latest: dict[str, Any] = {}
    solver = laid_out(Difference(flow(), torch.stack(q), latest, 1.0))
    rows = torch.cat([q[0]] * 3)
    edits = [x, x]
    for i, t in enumerate(solver.timesteps):
        latest["output"] = prompted(rows, float(t))
        rows = solver.step(latest["output"], t, rows)[0]
        rows[:1] = q[i + 1]  # as the pivots do
        there = prompted(torch.cat([q[i], *(z + q[i] - x for z in edits)]), 1000 * sigmas[i])
        step = sigmas[i + 1] - sigmas[i]
        edits = [z + step * (there[n] - there[0]) for n, z in enumerate(edits, 1)]
    torch.testing.assert_close(rows[1:], torch.cat(edits))


def test_flowedit_guides_the_source_by_a_scale_of_its_own() -> None:
    raw = torch.arange(4.0).reshape(4, 1, 1, 1)  # two rows: negative 0, 1, positive 2, 3
    solver = laid_out(Difference(flow(), torch.zeros(STEPS + 1, 1, 1, 1, 1), {"output": raw}, 3))
    guided = raw[:2] + 5 * (raw[2:] - raw[:2])
    step = levels()[1] - levels()[0]
    found = solver.advance(torch.zeros(2, 1, 1, 1), guided, 0, 0)
    torch.testing.assert_close(found[1], step * (guided[1] - (0 + 3 * 2.0)))


def test_uniedit_fuses_two_velocities_at_the_edits_own_place() -> None:
    solver = laid_out(Fusion(flow(), 2.0))
    places: list[Tensor] = []

    def model(x: Tensor, t: float) -> Tensor:
        places.append(x)
        return torch.cat([curved(x[:1], t), torch.cos(x[1:])])

    z, sigmas = clean(1), levels()
    found = walked(solver, model, torch.cat([clean(), z]))
    for now, then in pairwise(sigmas):
        own, new = curved(z, 1000 * now), torch.cos(z)
        push = new - own
        mask = push.mean(1, keepdim=True)
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        z = z + (then - now) * (mask * new + (1 - mask) * own + 2 * (1 + mask) * push)
    torch.testing.assert_close(found[-1][1:], z, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[-1][:1], clean())  # the source's row is left to its pivots
    assert all(torch.equal(each[:1], each[1:]) for each in places)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sd3(t5=False)


@pytest.mark.parametrize("method", ["fireflow", "flowedit", "uniedit"])
def test_flows_edit_photographs_and_leave_the_pipeline_as_it_was(pipe: Any, method: str) -> None:
    before = pipe.scheduler, dict(pipe.transformer._forward_pre_hooks)
    result = xattn.edit(
        pipe, PROMPT, [xattn.Replace("red", "blue"), xattn.LocalBlend("car")], image=picture(),
        method=method, num_inference_steps=3, guidance_scale=4.0, output_type="latent",
        generator=torch.Generator().manual_seed(0), trace=False,
    )  # fmt: skip
    assert (pipe.scheduler, dict(pipe.transformer._forward_pre_hooks)) == before
    assert result.inversion is not None
    assert result.inversion.calls == {"fireflow": 4, "flowedit": 0, "uniedit": 4}[method]
    assert torch.isfinite(result.images[0]).all()
    assert not torch.equal(result.images[0], result.source)
    kept = torch.equal(result.source, result.inversion.pivots[-1, 0])
    assert kept == (method != "fireflow")
    mask = result.masks[0]
    assert mask is not None
    outside = ~mask[-1]
    assert torch.equal(result.images[0][:, outside], result.source[:, outside])


def test_uniedit_takes_one_edit_at_a_time(pipe: Any) -> None:
    blue = xattn.Replace("red", "blue")
    with pytest.raises(ValueError, match="'uniedit' makes 1 edit at a time, got 2: its source"):
        xattn.edit(pipe, PROMPT, blue, blue, image=picture(), method="uniedit",
                   num_inference_steps=2)  # fmt: skip


def test_flows_alone_can_have_them() -> None:
    for name in ("fireflow", "flowedit", "uniedit"):
        assert METHODS[name].kinds == frozenset(("flow",))
