"""Each method's algorithm against a small reference of its own, with a function for a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests import tiny
from xattn.inversion.edit_friendly import NoiseReader, NoiseReplay
from xattn.inversion.fixed_point import Iterated
from xattn.inversion.methods import METHODS, cost_of, method_of
from xattn.inversion.null_text import optimized
from xattn.inversion.path import Path
from xattn.inversion.rf_solver import Taylor
from xattn.inversion.solver import Solver, Straight

STEPS = 4
Model = Callable[[Tensor, float], Tensor]


def wave(x: Tensor, t: float) -> Tensor:
    """A smooth prediction that depends on place and time."""
    return 0.3 * torch.sin(x) + x * t / 4000


def clean(seed: int = 0) -> Tensor:
    return torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def walked(solver: Solver, model: Model, latents: Tensor) -> list[Tensor]:
    """What a pipeline does: predict, and step."""
    found = []
    for t in solver.timesteps:
        latents = solver.step(model(latents, float(t)), t, latents)[0]
        found.append(latents)
    return found


def laid_out(solver: Any) -> Any:
    solver.set_timesteps(STEPS)
    return solver


def flow() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_climbs_by_the_papers_step(kind: str) -> None:
    scheduler = tiny.make_scheduler("ddim", prediction_type=kind)
    solver = laid_out(Straight(scheduler, up=True))
    walked(solver, wave, clean())
    alphas = scheduler.alphas_cumprod.double()
    x, at = clean().double(), [1, 251, 501, 751]  # as DDIM lays out four steps
    levels = [scheduler.final_alpha_cumprod.double(), *(alphas[t] for t in at)]
    for number, t in enumerate(at):
        now, after = levels[number], levels[number + 1]
        output = wave(x, t)
        noise = output if kind == "epsilon" else after**0.5 * output + (1 - after) ** 0.5 * x
        start = (x - (1 - now) ** 0.5 * noise) / now**0.5
        x = after**0.5 * start + (1 - after) ** 0.5 * noise
        pivot = solver.pivots[STEPS - 1 - number]
        torch.testing.assert_close(pivot, x.float(), rtol=1e-4, atol=1e-5)


def descended(scheduler: Any, model: Model, latents: Tensor) -> Tensor:
    """The latents that diffusers' own scheduler arrives at."""
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        latents = scheduler.step(model(latents, float(t)), t, latents).prev_sample
    return latents


@pytest.mark.parametrize("make", [tiny.make_scheduler, flow])
def test_a_fixed_point_leads_back_to_where_it_came_from(make: Any) -> None:
    plain, solved = laid_out(Straight(make(), up=True)), laid_out(Iterated(make(), up=True))
    walked(plain, wave, clean())
    walked(solved, wave, clean())
    rough = (descended(make(), wave, plain.pivots[0]) - clean()).abs().max()
    close = (descended(make(), wave, solved.pivots[0]) - clean()).abs().max()
    assert close < rough / 10


def test_edit_friendly_noises_are_those_that_the_sampler_would_have_to_draw() -> None:
    scheduler = tiny.make_scheduler("ddim")
    reader = NoiseReader(scheduler, clean(), torch.Generator().manual_seed(1))
    reader.set_timesteps(STEPS)
    walked(reader, wave, reader.levels[0])
    levels = [*reader.levels, clean()]
    scheduler.set_timesteps(STEPS)
    for i, t in enumerate(scheduler.timesteps):
        after = scheduler.step(
            wave(levels[i], float(t)), t, levels[i], eta=1.0, variance_noise=reader.noises[i]
        ).prev_sample
        torch.testing.assert_close(after, levels[i + 1], rtol=1e-3, atol=1e-4)


def test_edit_friendly_levels_are_noised_independently_and_replayed_exactly() -> None:
    scheduler = tiny.make_scheduler("ddim")
    reader = NoiseReader(scheduler, clean(), torch.Generator().manual_seed(1))
    reader.set_timesteps(STEPS)
    walked(reader, wave, reader.levels[0])
    path = reader.path
    drawn = [
        (level - path.signal[i] * clean()) / path.noise[i] for i, level in enumerate(reader.levels)
    ]
    assert not torch.allclose(drawn[0], drawn[1], atol=0.1)
    replay = laid_out(NoiseReplay(scheduler, torch.stack(reader.noises)))
    found = walked(replay, wave, reader.levels[0])
    torch.testing.assert_close(found[-1], clean(), rtol=1e-3, atol=1e-4)


def test_the_second_order_solver_takes_taylors_step_both_ways() -> None:
    rate = 0.7  # of v = rate z, whose steps of second order are known in closed form

    def linear(x: Tensor, t: float) -> Tensor:
        return rate * x

    up = laid_out(Taylor(flow(), up=True))
    walked(up, linear, clean())
    sigmas = up.path.noise
    expected = clean()
    for level in range(STEPS, 0, -1):
        h = sigmas[level - 1] - sigmas[level]
        expected = expected * (1 + h * rate + (h * rate) ** 2 / 2)
        torch.testing.assert_close(up.pivots[level - 1], expected)
    down = laid_out(Taylor(flow(), up=False))
    first = walked(down, linear, up.pivots[0])[1]
    h = sigmas[1] - sigmas[0]
    torch.testing.assert_close(first, up.pivots[0] * (1 + h * rate + (h * rate) ** 2 / 2))


def test_second_order_is_nearer_to_the_flow_than_euler() -> None:
    def curved(x: Tensor, t: float) -> Tensor:
        return torch.sin(x) + t / 1000

    def back(kind: Any) -> Tensor:
        up, down = laid_out(kind(flow(), up=True)), laid_out(kind(flow(), up=False))
        walked(up, curved, clean())
        return (walked(down, curved, up.pivots[0])[-1] - clean()).abs().max()

    assert back(Taylor) < back(Straight) / 3


def test_null_texts_gradients_are_the_dense_ones_and_its_loss_falls() -> None:
    random = torch.Generator().manual_seed(0)
    matrix, target = torch.randn(12, 6, generator=random), torch.randn(1, 12, generator=random)
    start = torch.randn(1, 2, 3, generator=random)

    def step(null: Tensor) -> Tensor:
        return null.reshape(1, 6) @ matrix.T

    found, losses = optimized(step, start, target, 0.05, 0.0)
    gradient = 2 / 12 * (start.reshape(1, 6) @ matrix.T - target) @ matrix  # of the mean square
    once, _ = optimized(step, start, target, 0.05, losses[0] * 0.9999)
    moved = (once - start).reshape(1, 6)
    torch.testing.assert_close(moved, -0.05 * gradient.sign(), rtol=1e-3, atol=1e-3)
    assert all(later < before for before, later in pairwise(losses))
    assert found.shape == start.shape


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpm++2m", "unipc", "euler"])
def test_a_path_has_the_schedulers_levels(name: str) -> None:
    scheduler = tiny.make_scheduler(name)
    scheduler.set_timesteps(STEPS)
    path = Path.of(scheduler)
    assert len(path.signal) == path.steps + 1 == STEPS + 1
    for signal, noise in zip(path.signal, path.noise, strict=True):
        assert abs(signal**2 + noise**2 - 1) < 1e-6
    assert list(path.signal) == sorted(path.signal)
    assert path.native(clean(), 0).std() > 2 if name == "euler" else path.scale[0] == 1


def test_schedulers_without_known_steps_are_refused_with_those_there_are() -> None:
    scheduler = tiny.make_scheduler("heun")
    scheduler.set_timesteps(STEPS)
    with pytest.raises(ValueError, match=r"HeunDiscreteScheduler can't be inverted; .*DDIMSched"):
        Path.of(scheduler)


def test_a_method_that_a_model_cannot_have_is_refused_with_those_it_can() -> None:
    with pytest.raises(ValueError, match=r"'rf-solver' needs a flow-matching model.*null-text"):
        method_of("rf-solver", "diffusion", "P")
    with pytest.raises(ValueError, match="'guess' is not a method of inversion; P can have"):
        method_of("guess", "flow", "P")


def test_costs_count_calls_and_bytes() -> None:
    cost = cost_of(METHODS["fixed-point"], 10, 100, 7)
    assert (cost.calls, cost.nbytes) == (50, 4 * 11 * 100)
    assert cost_of(METHODS["null-text"], 10, 100, 7).nbytes == 4 * (11 * 100 + 10 * 7)
    assert str(cost) == "inverting (fixed-point): 50 denoiser calls, 4.4 kB"
