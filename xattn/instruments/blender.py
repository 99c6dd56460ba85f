"""Blender: LocalBlend between steps, on maps of the middle resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xattn.edits import masks
from xattn.edits.kinds import LocalBlend
from xattn.edits.plan import EditPlan
from xattn.edits.timing import begun
from xattn.edits.tokens import Places
from xattn.instruments.keeper import KeptSource
from xattn.instruments.reach import map_layers, middle_grid
from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.processors.editing import Blending
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Blender(Instrument):
    """Replace latents outside each sibling's LocalBlend mask by the source's.

    It runs after the editor, to see the maps in effect.

    Args:
        plan: the plan of the edits.
        side: largest side of the grids whose self-attention follows, as for the editor.
        scale: pixels per latent, for masks in pixels.
        kept: the store of a kept source, or None.
        reads: whether the source comes from an earlier run.

    Attributes:
        masks: for each sibling and each complete step, where its LocalBlend let the edit through,
            bool (images, height, width) on the run's device, so no step waits for it; None in
            steps before its start.
    """

    def __init__(
        self,
        plan: EditPlan,
        *,
        side: int | None = None,
        scale: int = 8,
        kept: KeptSource | None = None,
        reads: bool = False,
    ) -> None:
        self.plan = plan
        self.side = side
        self.scale = scale
        self.kept = kept
        self.reads = reads
        self.masks: list[list[Tensor | None]] = [[] for _ in plan.siblings]
        self.layers: dict[AttentionLayer, Blending] = {}
        self.images = 1
        self._steps = 0
        self._latent = (0, 0)
        self._call: Tensor | None = None  # maps of the current call
        self._step: Tensor | None = None  # their sum over the calls of the current step
        self._total: Tensor | None = None  # the sum over all steps so far
        self._calls = 0
        self._drawn: list[Tensor | None] = []  # users' masks on the latent grid
        self._places: list[Places | None] = []

    @property
    def between_steps(self) -> bool:  # type: ignore[override]
        """Whether there is work to do after each step."""
        return self.kept is not None or any(s.blend is not None for s in self.plan.siblings)

    @property
    def _needs_maps(self) -> bool:
        keeps = self.kept is not None and not self.reads
        places = [sibling.places for sibling in self.plan.siblings]
        return keeps or any(p is not None and p.any for p in places)

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer that reads text, if maps are needed at all."""
        if not self._needs_maps:
            return {}
        roles = ("cross", "joint")
        own = [layer for layer in layers if layer.role in roles and not layer.component]
        self.layers = {layer: Blending() for layer in own}
        return self.layers

    # -- a run -------------------------------------------------------------------------------------

    def begin(self, sampling: Sampling) -> None:
        """Fit user masks to the latents, and allocate the middle resolution's maps.

        Raises:
            ValueError: a LocalBlend would start after the last step.
        """
        self._refuse_idle(sampling.steps or 0)
        prompts = len(self.plan.prompts) - self.reads
        self.images = sampling.images // prompts
        self._steps = sampling.steps or 0
        self.masks = [[] for _ in self.plan.siblings]
        self._drawn = self._fitted(sampling)
        self._places = [
            None if s.places is None else s.places.on(sampling.device) for s in self.plan.siblings
        ]
        self._latent = sampling.latent
        self._call = self._step = self._total = None
        self._calls = 0
        if not self.layers:
            return
        layers = map_layers(self.layers, sampling.family.map_layers)
        grid = middle_grid(map(sampling.grid, layers), sampling.latent, self.side)
        chosen = [self.layers[layer] for layer in layers if sampling.grid(layer) == grid]
        size = (self.images * prompts, self.plan.length, *grid)
        self._call = torch.zeros(size, device=sampling.device)
        self._step, self._total = torch.zeros_like(self._call), torch.zeros_like(self._call)
        for handler in chosen:
            handler.total, handler.share = self._call, 1 / len(chosen)

    def _refuse_idle(self, steps: int) -> None:
        for blend in (sibling.blend for sibling in self.plan.siblings):
            if blend is not None and steps and not begun(steps - 1, steps, blend.start):
                raise ValueError(
                    f"LocalBlend with start={blend.start:g} never acts in a run of {steps} "
                    f"{'step' if steps == 1 else 'steps'}, whose last begins at "
                    f"{(steps - 1) / steps:.3g}: use a smaller start=, or more steps"
                )

    def _fitted(self, sampling: Sampling) -> list[Tensor | None]:
        given = [None if s.blend is None else s.blend.mask for s in self.plan.siblings]
        fitted = [
            None if m is None else masks.fit_mask(m, sampling.latent, self.scale) for m in given
        ]
        return [None if mask is None else mask.to(sampling.device) for mask in fitted]

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the middle resolution's layers at the conditional rows."""
        if call.component or self._call is None:
            return
        self._call.zero_()
        for handler in self.layers.values():
            handler.rows = call.conditional[0]
            handler.live = handler.total is not None

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Add a call's maps to its step, and a complete step's mean to the sum."""
        if self._call is None or self._step is None or self._total is None:
            return
        self._step += self._call
        self._calls += 1
        if call.ends_step:
            self._total += self._step / self._calls
            self._step.zero_()
            self._calls = 0

    def end(self, sampling: Sampling) -> None:
        """Release the layers; keep what the last step's blend needs."""
        for handler in self.layers.values():
            handler.total = None

    # -- between steps -----------------------------------------------------------------------------

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        """Return the latents after a step, with the source's outside LocalBlend's masks.

        Args:
            step: index of the step.
            latents: (prompts x images, channels, height, width), prompt-major; or packed, as
                FLUX's (prompts x images, positions, channels).

        Raises:
            ValueError: the number of rows is wrong.
        """
        if latents.ndim == 3:
            whole = self.after_step(step, masks.unpacked(latents, self._latent))
            return masks.packed(whole, latents.shape[1])
        texts = self.plan.texts[1:] if self.reads else self.plan.texts
        if len(latents) != self.images * len(texts):
            raise ValueError(
                f"latents has {len(latents)} rows; expected {self.images} for each of the prompts "
                f"{texts!r}"
            )
        source, maps = self._source(latents, step)
        parts = [] if self.reads else [source]
        for j, sibling in enumerate(self.plan.siblings):
            rows = self._rows_of(j)
            mask = None
            if sibling.blend is not None and begun(step, self._steps, sibling.blend.start):
                target = None if self._total is None else self._total[rows]
                grid = (latents.shape[-2], latents.shape[-1])
                mask = self._mask(j, sibling.blend, maps, target, grid)
                if step + 1 == self._steps and sibling.blend.mask is None:
                    share = sibling.blend.changed or 0
                    mask = masks.narrowed(mask, latents[rows], source, share)
            self.masks[j].append(mask)
            blended = latents[rows] if mask is None else masks.blended(latents[rows], source, mask)
            parts.append(blended)
        return torch.cat(parts)

    def _rows_of(self, sibling: int) -> slice:
        first = (sibling + (0 if self.reads else 1)) * self.images
        return slice(first, first + self.images)

    def _source(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the source's latents and maps after a step; store them if keeping."""
        if self.kept is not None and self.reads:
            maps = self.kept.maps[step]
            return self.kept.latents[step].to(latents), maps.to(latents.device)
        source = latents[: self.images]
        maps_ = None if self._total is None else self._total[: self.images]
        if self.kept is not None and maps_ is not None:
            self.kept.latents.append(source.detach().clone())
            self.kept.maps.append(maps_.clone())
        return source, maps_

    def _mask(
        self,
        j: int,
        how: LocalBlend,
        source: Tensor | None,
        target: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """Return a sibling's mask, (images, height, width)."""
        places, drawn = self._places[j], self._drawn[j]
        assert places is not None
        if source is None or target is None:
            assert drawn is not None  # without words there is a mask
            return drawn.expand(self.images, -1, -1)
        if drawn is None:
            return masks.pair_mask(source, target, places, grid, how.threshold)
        less = masks.left_out(source, target, places, grid, how.threshold)
        return drawn.expand(self.images, -1, -1) * ~less
