"""FlowEdit: from the photograph to its edit along the difference of two velocities, uninverted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xattn.inversion.inversion import Inversion
from xattn.inversion.method import FLOW, Asked, Found, Method
from xattn.inversion.solver import Solver, Straight, stands_in, watched
from xattn.models import family_of_pipeline
from xattn.models.packing import lay_out

SOURCE = 3.5 / 13.5
"""The source's guidance scale as a share of the edits': the authors' for Stable Diffusion 3."""


class FlowEdit(Method):
    """Move the picture x by the difference of the new prompt's velocity and its own (2025).

    q = (1 - s) x + s e with new noise e at every level, z += ds (v(z + q - x, s; new) - v(q, s;
    own)), from z = x (Kulikov et al. 2025; one draw of noise a step, their n_avg of 1). The pivots
    are the levels q, which take no call to make; the rows of a run hold q, and z + q - x for each
    edit. Edits begin after 17 of 50 steps, the authors' n_max of 33 for Stable Diffusion 3, and
    the source is guided less than the edits. As published no attention is held: ``cross_steps=0``
    and ``self_steps=0``.
    """

    name = "flowedit"
    kinds = frozenset((FLOW,))
    pinned = True
    start = 0.34

    def calls(self, steps: int) -> int:
        """Return 0: there is nothing to invert."""
        return 0

    def invert(self, asked: Asked, what: str) -> Found:
        """Return the independently noised levels."""
        layout = Straight(asked.pipe.scheduler, up=False)
        lay_out(asked.pipe, layout, asked.steps, asked.clean)
        clean, path = asked.clean.float(), layout.path
        place = "cpu" if asked.generator is None else asked.generator.device
        levels = [
            path.noised(
                clean,
                torch.randn(clean.shape, generator=asked.generator, device=place).to(clean),
                level,
            )
            for level in range(path.steps)
        ]
        return Found(torch.stack([*levels, clean]), path.timesteps)

    @contextmanager
    def replayed(self, pipe: Any, inversion: Inversion, options: dict[str, Any]) -> Iterator[None]:
        """Descend by differences of velocities."""
        scale = max(1.0, SOURCE * float(options["guidance_scale"]))
        with watched(family_of_pipeline(pipe).denoisers(pipe)[0]) as latest:
            solver = Difference(pipe.scheduler, inversion.pivots, latest, scale)
            with stands_in(pipe, solver):
                yield


class Difference(Solver):
    """Steps by the difference of each row's velocity to the source's.

    Args:
        scheduler: the pipeline's.
        levels: the source at each level, (steps + 1, 1, channels, height, width).
        latest: the denoiser's latest call, of ``watched``.
        scale: the source's guidance scale.
    """

    def __init__(
        self, scheduler: Any, levels: Tensor, latest: dict[str, Any], scale: float
    ) -> None:
        super().__init__(scheduler, up=False)
        self.levels = levels
        self.latest = latest
        self.scale = scale

    def advance(self, latents: Tensor, output: Tensor, index: int, call: int) -> Tensor:
        """Return each row at the next level: q' + (z - x), z moved by the difference."""
        now, after = (self.levels[level].to(latents) for level in (index, index + 1))
        step = self.path.noise[index + 1] - self.path.noise[index]
        return latents + (after - now) + step * (output - self._source(output))

    def _source(self, output: Tensor) -> Tensor:
        """Return the source's velocity, (1, ...), at its own guidance scale."""
        raw = self.latest["output"].float()
        if len(raw) != 2 * len(output):
            return output[:1]
        negative, positive = (half[:1] for half in raw.chunk(2))
        guided: Tensor = negative + self.scale * (positive - negative)
        return guided
