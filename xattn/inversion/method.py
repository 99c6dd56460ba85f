"""What a method of inversion has to say, and how most of them work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xattn.inversion.inversion import Inversion
from xattn.inversion.solver import Solver, Straight, stands_in

DIFFUSION, FLOW = "diffusion", "flow"


@dataclass(frozen=True)
class Asked:
    """What an inversion is made of.

    Attributes:
        pipe: the pipeline.
        prompt: the text of the picture.
        clean: the picture's latents, (1, channels, height, width).
        steps: number of steps.
        guidance: the guidance scale of later edits.
        generator: of the methods that draw noise.
        options: further options of the pipeline's call.
    """

    pipe: Any
    prompt: str
    clean: Tensor
    steps: int
    guidance: float
    generator: torch.Generator | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, solver: Solver, latents: Tensor, guidance: float, what: str) -> None:
        """Call the pipeline along a solver, without decoding."""
        arguments = {
            "num_inference_steps": self.steps,
            **self.options,
            "prompt": self.prompt,
            "latents": latents,
            "guidance_scale": guidance,
            "output_type": "latent",
        }
        with stands_in(self.pipe, solver, what):
            self.pipe(**arguments)


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        pivots: float32 (steps + 1, 1, channels, height, width), from noise to the clean latents.
        timesteps: of each step.
        extra: a method's own tensor: noises, or embeddings.
    """

    pivots: Tensor
    timesteps: tuple[float, ...]
    extra: Tensor | None = None


class Method:
    """A method of inversion; its instances hold nothing.

    Attributes:
        name: as users say it.
        kinds: the kinds of models that can have it: "diffusion", "flow".
        pinned: whether the source's latents are set to the pivots after each step of an edit.
        guided: whether the inversion depends on the guidance scale of later edits.
        start: share of a run before which edits hold every image to the pivots.
        edits: how many edits one call takes; None where any number will do.
    """

    name = ""
    kinds: frozenset[str] = frozenset((DIFFUSION, FLOW))
    pinned = False
    guided = False
    start = 0.0
    edits: int | None = None

    def calls(self, steps: int) -> int:
        """Return the most denoiser calls that an inversion makes."""
        return steps

    def extra(self, steps: int, latent: int, text: int) -> int:
        """Return how many numbers are kept besides the pivots.

        Args:
            steps: number of steps.
            latent: numbers of one image's latents.
            text: numbers of one prompt's embeddings.
        """
        return 0

    def solver(self, scheduler: Any) -> Solver:
        """Return what climbs to noise."""
        return Straight(scheduler, up=True)

    def invert(self, asked: Asked, what: str) -> Found:
        """Return the pivots of a picture, by one climb at guidance 1."""
        solver = self.solver(asked.pipe.scheduler)
        guidance = asked.guidance if self.guided else 1.0
        asked.run(solver, asked.clean, guidance, what)
        return Found(stacked(solver, asked.clean), solver.path.timesteps)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Prepare the pipeline, and its options in place, for a call that draws the source.

        The pipeline is restored at the end of the block.
        """
        yield


def stacked(solver: Solver, clean: Tensor) -> Tensor:
    """Return all pivots, from noise to the clean latents."""
    levels = [solver.pivots[level] for level in range(solver.path.steps)]
    return torch.stack([*levels, clean.float()])
