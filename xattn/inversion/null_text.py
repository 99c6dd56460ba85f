"""Null-text inversion: the empty prompt's embedding, optimized (Mokady et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xattn.inversion.inversion import Inversion
from xattn.inversion.method import DIFFUSION, Asked, Found, Method
from xattn.inversion.solver import Solver, watched
from xattn.models import family_of_pipeline

ITERATIONS = 10
RATE = 1e-2
ENOUGH, MORE_ENOUGH = 1e-5, 2e-5  # the loss at which a step ends: the first's, and more for each


class NullText(Method):
    """Find for each step the negative embedding with which guidance arrives at the pivot.

    min over n of |z*[t - 1] - step(z[t], n)|^2 with the pivots z* of DDIM inversion at guidance 1,
    from where the step before ended. Adam's learning rate, 0.01 (1 - i / 2 n) in step i of n, ten
    iterations, and the early end at a loss of 1e-5 + 2e-5 i are those of the authors' code, which
    takes one more iteration before it ends. The weights are float32 while it runs.
    """

    name = "null-text"
    kinds = frozenset((DIFFUSION,))
    guided = True

    def calls(self, steps: int) -> int:
        """Return the most denoiser calls; the optimization may end early in each step."""
        return steps * (3 + ITERATIONS)

    def extra(self, steps: int, latent: int, text: int) -> int:
        """Return the numbers of the embeddings."""
        return steps * text

    def invert(self, asked: Asked, what: str) -> Found:
        """Return DDIM's pivots, and an embedding for each step.

        Raises:
            ValueError: the guidance scale is at most 1: there is no negative pass to optimize.
        """
        if asked.guidance <= 1:
            raise ValueError(
                f"guidance_scale={asked.guidance:g}: null-text inversion optimizes the negative "
                "pass of guidance, so it needs more than 1; without guidance use method='direct'"
            )
        pipe = asked.pipe
        denoiser = family_of_pipeline(pipe).denoisers(pipe)[0]
        encoders = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
        modules = [denoiser, *(each for each in encoders if isinstance(each, nn.Module))]
        with in_float32(modules), frozen(denoiser):
            wide = Asked(
                pipe, asked.prompt, asked.clean.float(), asked.steps, asked.guidance,
                options=asked.options,
            )  # fmt: skip
            found = self._climbed(wide, what)
            with watched(denoiser) as latest:
                solver = Optimizer(pipe.scheduler, found.pivots, denoiser, latest, asked.guidance)
                wide.run(solver, found.pivots[0], asked.guidance, f"{what}, optimizing")
        return Found(found.pivots, found.timesteps, torch.cat(solver.nulls).cpu())

    def _climbed(self, asked: Asked, what: str) -> Found:
        plain = Asked(asked.pipe, asked.prompt, asked.clean, asked.steps, 1.0, None, asked.options)
        return super().invert(plain, what)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Hand the denoiser each step's embedding in the place of the negative prompt's."""
        assert inversion.extra is not None
        denoiser = family_of_pipeline(pipe).denoisers(pipe)[0]
        hook = _Swap(inversion.extra, inversion.timesteps)
        handle = denoiser.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class Optimizer(Solver):
    """The descent along the pivots, which optimizes the negative embedding in each step.

    Args:
        scheduler: the pipeline's.
        pivots: (steps + 1, 1, channels, height, width).
        denoiser: the model.
        latest: its latest call: arguments by name, and output.
        guidance: the guidance scale.

    Attributes:
        nulls: the embedding of each step, (1, tokens, channels).
        losses: the losses of each step, before each iteration and after the last.
    """

    def __init__(
        self,
        scheduler: Any,
        pivots: Tensor,
        denoiser: nn.Module,
        latest: dict[str, Any],
        guidance: float,
    ) -> None:
        super().__init__(scheduler, up=False)
        self.targets = pivots
        self.denoiser = denoiser
        self.latest = latest
        self.guidance = guidance
        self.nulls: list[Tensor] = []
        self.losses: list[list[float]] = []

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Optimize the step's embedding, and return the latents that it leads to."""
        arguments = {name: _first(value) for name, value in self.latest["arguments"].items()}
        _, positive = self.latest["output"].float().chunk(2)
        start = self.nulls[-1] if self.nulls else arguments["encoder_hidden_states"]
        name = "sample" if "sample" in arguments else "hidden_states"

        def step(null: Tensor) -> Tensor:
            given = {**arguments, name: latents, "encoder_hidden_states": null}
            found = self.denoiser(**{**given, "return_dict": False})[0].float()
            guided = found + self.guidance * (positive - found)
            return self.path.moved(latents, guided, index, index + 1, index)

        rate = RATE * (1 - index / (2 * self.path.steps))
        null, losses = optimized(
            step, start, self.targets[index + 1].to(latents), rate, ENOUGH + index * MORE_ENOUGH
        )
        with torch.no_grad():
            following = step(null)
        losses.append(float(F.mse_loss(following, self.targets[index + 1].to(latents))))
        self.nulls.append(null)
        self.losses.append(losses)
        return following


def optimized(
    step: Callable[[Tensor], Tensor], start: Tensor, target: Tensor, rate: float, enough: float
) -> tuple[Tensor, list[float]]:
    """Return the embedding with which a step comes nearest to a target, and the losses on the way.

    Args:
        step: the latents after the step, from an embedding.
        start: the embedding to begin with, (1, tokens, channels).
        target: the latents to arrive at.
        rate: Adam's learning rate.
        enough: the loss at which to stop.
    """
    with torch.inference_mode(False), torch.enable_grad():
        null = start.detach().clone().float().requires_grad_()
        adam = torch.optim.Adam([null], lr=rate)
        losses = []
        for _ in range(ITERATIONS):
            loss = F.mse_loss(step(null), target)
            losses.append(float(loss.detach()))
            if losses[-1] < enough:
                break
            (null.grad,) = torch.autograd.grad(loss, [null])
            adam.step()
    return null.detach(), losses


class _Swap:
    """A hook that writes each step's embedding into the rows of guidance."""

    def __init__(self, nulls: Tensor, timesteps: Sequence[float]) -> None:
        self.nulls = nulls
        self.timesteps = torch.tensor(timesteps)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = kwargs["encoder_hidden_states"]
        now = float(torch.as_tensor(kwargs.get("timestep", args[-1] if args else 0)).flatten()[0])
        index = int((self.timesteps - now).abs().argmin())
        null = self.nulls[index].to(states)
        half = len(states) // 2
        states = torch.cat([null.expand(half, *states.shape[1:]), states[half:]])
        return args, {**kwargs, "encoder_hidden_states": states}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Take no gradients of a module's weights inside the block."""
    with ExitStack() as stack:
        for weight in module.parameters():
            if weight.requires_grad:
                stack.callback(weight.requires_grad_, True)
                weight.requires_grad_(False)
        yield


@contextmanager
def in_float32(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Widen the weights of modules to float32, and put back those that were there."""
    found = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    narrow = [t for t in found if t.is_floating_point() and t.dtype != torch.float32]
    with ExitStack() as stack:
        for each in narrow:
            stack.callback(_restore, each, each.data)
            each.data = each.data.float()
        yield


def _restore(weight: Tensor, data: Tensor) -> None:
    weight.data = data


def _first(value: Any) -> Any:
    """Return the negative half of a guided call's argument."""
    if isinstance(value, Tensor) and value.ndim and len(value) % 2 == 0:
        return value[: len(value) // 2]
    if isinstance(value, dict):
        return {name: _first(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_first(each) for each in value)
    return value
