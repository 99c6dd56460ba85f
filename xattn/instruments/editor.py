"""Edits at work: processors that edit, driven by the denoiser's calls."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, cast

import torch
from torch import Tensor

from xattn.edits import masks
from xattn.edits.kinds import LocalBlend
from xattn.edits.plan import EditPlan, Places
from xattn.edits.timing import begun
from xattn.instruments.keeper import KeptSource
from xattn.instruments.recorder import Recorder, Tap
from xattn.models.unet import Site, find_sites, text_sites
from xattn.processors.call import Handler
from xattn.processors.editing import CrossEditing, SelfEditing
from xattn.processors.forms import CrossStep, Origin, Rows
from xattn.processors.wrapping import innermost
from xattn.records import room
from xattn.records.options import Options
from xattn.session.clock import Schedule
from xattn.session.loop import LoopSource
from xattn.session.pipeline import PipelineSource
from xattn.session.source import Asked


@dataclass(frozen=True)
class Cross:
    """A cross-attention layer, and what edits it."""

    site: Site
    handler: CrossEditing


@dataclass(frozen=True)
class Self:
    """A self-attention layer, and what edits it."""

    site: Site
    handler: SelfEditing


class Editor(Recorder):
    """Edits the siblings of a batch, and records what every row attends to in effect.

    The batch is prompt-major: all images of the source, then all images of each sibling. A source
    that was kept of an earlier run isn't in the batch.

    Attributes:
        edits: the plan.
        kept: where the source is kept, or was; None where it is neither.
        reads: whether it was kept of an earlier run.
        masks: for each sibling and each step that is complete, where LocalBlend let the edit
            through, (images, height, width) on the run's device, so that no step waits for it;
            None in steps before its start.
    """

    def __init__(
        self,
        source: PipelineSource | LoopSource,
        options: Options,
        edits: EditPlan,
        *,
        records: bool = True,
        images: int = 1,
        side: int | None = None,
        scale: int = 8,
        kept: KeptSource | None = None,
        reads: bool = False,
    ) -> None:
        self.edits = edits
        self.kept = kept
        self.reads = reads
        self.images = images
        self.side = side
        self.scale = scale
        self.masks: list[list[Tensor | None]] = [[] for _ in edits.siblings]
        self.records = records
        self.cross, self.selfs = _layers(source)
        self.layers: list[Cross | Self] = [*self.cross, *self.selfs]
        self.words: Tensor | None = None  # maps of the call under way, for LocalBlend
        self.pending: Tensor | None = None  # of the calls of the step under way
        self.total: Tensor | None = None  # of the steps so far
        self.calls = 0
        self.batch = 0  # rows of the call under way
        self.ended: tuple[int, int] | None = None  # the step that just ended, of how many
        self._drawn: list[Tensor | None] = []  # users' masks on the latent grid
        self._places: list[Places | None] = []
        # phases repeat, and what they need is made once for each
        self._rows_of: dict[Any, Rows] = {}
        self._crosses: dict[Any, CrossStep | None] = {}
        super().__init__(source, options)
        source.on_end = self._end_call

    @property
    def texts(self) -> list[str]:
        """The prompts of the batch."""
        return self.edits.texts[1:] if self.reads else self.edits.texts

    def rows_of(self, sibling: int) -> slice:
        """Gives a sibling's rows among those that follow the prompts."""
        first = (sibling + (0 if self.reads else 1)) * self.images
        return slice(first, first + self.images)

    def _make_taps(self) -> list[Tap]:
        """Gives the layers whose maps are kept: the edited ones that fit ``layers``."""
        if not self.records:
            return []
        wanted = self.options.layers
        globs = [wanted] if isinstance(wanted, str) else wanted
        sites = [edited.site for edited in self.cross]
        kept = {site.name for site in (text_sites(sites, globs) if globs else sites)}
        return [
            Tap(edited.site, "", edited.handler)
            for edited in self.cross
            if edited.site.name in kept
        ]

    # -- installing and restoring ------------------------------------------------------------------

    @property
    def handled(self) -> list[tuple[Site, Handler]]:
        """The layers that are wrapped, each with its handler."""
        return [(layer.site, layer.handler) for layer in self.layers]

    def _inject(self) -> None:
        for layer in self.layers:
            _refuse_sliced(layer.site.module.processor)
        super()._inject()

    # -- a run -------------------------------------------------------------------------------------

    def begin_run(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Lays out what a run needs, after checking that it is the run that was planned."""
        asked = self.source.asked
        assert asked is not None
        texts = [prompt.text for prompt in asked.prompts]
        if texts != self.texts:
            raise ValueError(
                f"inside editing(), call the pipeline with session.prompts, {self.texts!r}; "
                f"it was called with {texts!r}"
            )
        self.images = len(asked.rows) // len(texts)
        sample: Tensor = arguments["sample"]
        latent = (int(sample.shape[-2]), int(sample.shape[-1]))
        self._refuse_idle_blends(arguments["timestep"])
        self._drawn = self._fit_masks(latent, sample.device)
        self._places = [None if s.places is None else s.places.on(sample.device)
                        for s in self.edits.siblings]  # fmt: skip
        self._rows_of, self._crosses = {}, {}
        if self.kept is not None:
            clock = self.source.clock(arguments["timestep"])
            assert clock is not None
            self._check_kept(self.kept, clock.plan, sample, latent)
        super().begin_run(prefix, arguments)
        assert self.plan is not None
        self.masks = [[] for _ in self.edits.siblings]
        self.ended, self.calls = None, 0
        self._lay_out_words(latent, sample.device)
        most = area_limit(latent, self.side)
        for edited in self.selfs:
            height, width = edited.site.grid(latent)
            edited.handler.seen = height * width > most  # too large to be edited at all
        self._lay_out_origins(latent)

    def _as_many_images(self, asked: Asked, batch: int) -> Asked:
        """Takes a loop's batch for what ``images=`` says, and refuses any other."""
        self._check_size(batch)
        return asked

    def _find_rows(self, states: Tensor | None, batch: int) -> tuple[slice, ...] | None:
        if not isinstance(self.source, LoopSource):
            return super()._find_rows(states, batch)
        self._check_size(batch)
        found = super()._find_rows(states, batch)
        if found is not None and states is not None and self.options.rows is None:
            self._check_order(states[found[0]])
            start, embeds = found[0].start, self.options.embeds is not None
            if start and not embeds and torch.equal(states[:start], states[start:][:start]):
                raise ValueError(
                    f"both halves of the UNet's {batch} rows have the same embeddings; with "
                    f"images={self.images} the first should be guidance's: say with images= how "
                    "many images of each prompt there are, or with rows= which rows follow them"
                )
        return found

    def _check_size(self, batch: int) -> None:
        """Refuses a loop's batch that has other rows than the prompts' images."""
        asked = self.source.asked
        assert asked is not None
        wanted, prompts = len(asked.rows), len(self.texts)
        much = f"{prompts} prompts x images={self.images}"
        if self.options.rows is not None:
            found = len(range(*self.options.rows.indices(batch)))
            if found != wanted:
                raise ValueError(
                    f"rows={self.options.rows} are {found} of the UNet's {batch} rows, and "
                    f"{wanted} follow the prompts ({much}): correct rows= or images="
                )
        elif asked.embeds is None and batch not in (wanted, 2 * wanted):
            raise ValueError(
                f"the UNet was called with {batch} rows; {much} are {wanted}, or {2 * wanted} "
                "with guidance: say with images= how many images of each prompt there are"
            )

    def _check_order(self, states: Tensor) -> None:
        """Refuses rows whose texts aren't those of the prompts: they would be edited wrong."""
        asked = self.source.asked
        assert asked is not None
        firsts: dict[tuple[int, ...], Tensor] = {}
        for row, place in enumerate(asked.rows):
            prompt = asked.prompts[place]
            ids = tuple(token.id for token in prompt.tokens)
            first = firsts.setdefault(ids, states[row])
            fits = _alike(first, states[row])
            if not fits or any(torch.equal(o, first) for i, o in firsts.items() if i != ids):
                raise ValueError(
                    f"row {row} of those that follow the prompts should be of {prompt.text!r}, its "
                    f"embeddings aren't: give each prompt of session.prompts images={self.images} "
                    "rows, one prompt after another, or say with images= or rows= how it is"
                )

    def _refuse_idle_blends(self, timestep: Any) -> None:
        """Raise ValueError where a LocalBlend would start behind the run's last step."""
        blends = [s.blend for s in self.edits.siblings if s.blend is not None]
        clock = self.source.clock(timestep) if blends else None
        steps = 0 if clock is None else len(clock.plan.timesteps)
        for each in blends:
            if steps and not begun(steps - 1, steps, each.start):
                raise ValueError(
                    f"LocalBlend with start={each.start:g} never acts in a run of {steps} "
                    f"{'step' if steps == 1 else 'steps'}, whose last begins at "
                    f"{(steps - 1) / steps:.3g}: give a smaller start=, or draw more steps"
                )

    def _fit_masks(self, latent: tuple[int, int], device: torch.device) -> list[Tensor | None]:
        given = [None if s.blend is None else s.blend.mask for s in self.edits.siblings]
        fitted = [None if m is None else masks.fit_mask(m, latent, self.scale) for m in given]
        return [None if mask is None else mask.to(device) for mask in fitted]

    def _check_kept(
        self, kept: KeptSource, plan: Schedule, sample: Tensor, latent: tuple[int, int]
    ) -> None:
        """Refuses to keep a source that wouldn't fit, or to read one of another schedule."""
        if not self.reads:
            needed = self._kept_bytes(plan, sample, latent)
            room.check_room_for("keeping the source takes", needed, sample.device, _SMALLER)
            kept.timesteps = plan.at
        elif kept.timesteps != plan.at:
            raise ValueError(
                f"source was drawn in {len(kept.timesteps)} denoiser calls from timestep "
                f"{kept.timesteps[0]:g} on, and the scheduler now has {plan.calls} from "
                f"{plan.at[0]:g} on: draw it again with keep_source=True"
            )

    def _kept_bytes(self, plan: Schedule, sample: Tensor, latent: tuple[int, int]) -> int:
        """Gives the bytes that keeping the source takes while it runs.

        Afterwards less: the text's keys, the same in every call, are then kept once.
        """
        kind, numbers = sample.device.type, 0
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else sample.dtype
        tokens, most = self.edits.source.length, area_limit(latent, self.side)
        for layer in self.layers:
            height, width = layer.site.grid(latent)
            queries, attn = height * width, cast(Any, layer.site.module)
            if isinstance(layer, Cross):
                numbers += queries * attn.inner_dim + tokens * attn.inner_kv_dim
            elif queries <= most:
                numbers += queries * (attn.inner_dim + attn.inner_kv_dim)
        height, width = self._words_grid(latent)
        maps = 4 * tokens * height * width
        channels = int(getattr(self.source.denoiser, "config", {}).get("out_channels", 4))
        latents = sample.element_size() * channels * latent[0] * latent[1]
        each = plan.calls * numbers * dtype.itemsize + len(plan.timesteps) * (maps + latents)
        return self.images * each

    def _words_grid(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Gives the grid of the middle resolution, whose maps make LocalBlend's masks."""
        most = area_limit(latent, self.side)
        grids = {edited.site.grid(latent) for edited in self.cross}
        return min(grids, key=lambda g: (abs(log(g[0] * g[1] / most)), g))

    def _lay_out_origins(self, latent: tuple[int, int]) -> None:
        """Connects the layers to where the source is kept."""
        most = area_limit(latent, self.side)
        for layer in self.layers:
            layer.handler.origin = None
            height, width = layer.site.grid(latent)
            if self.kept is None or (isinstance(layer, Self) and height * width > most):
                continue
            if not self.reads:
                self.kept.layers[layer.site.name] = []
            elif layer.site.name not in self.kept.layers:
                raise ValueError(
                    f"side={self.side} reaches layer {layer.site.name}, which the source didn't "
                    "keep; run it again with keep_source=True and the same side"
                )
            layer.handler.origin = Origin(self.kept.layers[layer.site.name])

    def _lay_out_words(self, latent: tuple[int, int], device: torch.device) -> None:
        """Makes room for the maps of the middle resolution, where a LocalBlend needs them."""
        self.words = self.pending = self.total = None
        for edited in self.cross:
            edited.handler.words = None
        keeps = self.kept is not None and not self.reads
        places = [sibling.places for sibling in self.edits.siblings]
        if not keeps and not any(p is not None and p.any for p in places):
            return
        grid = self._words_grid(latent)
        chosen = [edited for edited in self.cross if edited.site.grid(latent) == grid]
        rows, tokens = self.images * len(self.texts), self.edits.source.length
        self.words = torch.zeros(rows, tokens, *grid, device=device)
        self.pending, self.total = torch.zeros_like(self.words), torch.zeros_like(self.words)
        for edited in chosen:
            edited.handler.words = self.words
            edited.handler.words_share = 1 / len(chosen)

    def before_call(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Gets ready for a denoiser call: tells every layer what the step does."""
        super().before_call(prefix, arguments)
        if prefix:
            return
        if self.asleep or self.plan is None:
            for layer in self.layers:
                layer.handler.live = False
            return
        if self.words is not None:
            self.words.zero_()
        rows = self._rows(prefix, arguments)
        assert rows is not None
        step, steps = self.plan.steps[self.call], len(self.plan.timesteps)
        device = arguments["sample"].device
        self.batch = len(arguments["sample"])
        self._check_blended()
        cross = self._cross_step(step, steps, rows[0].start, device)
        recorded = {id(tap.recording) for tap in self.taps}
        keeps = self.kept is not None and not self.reads
        for layer in self.layers:
            if layer.handler.origin is not None:
                layer.handler.origin.call = self.call
                first = rows[0].start
                layer.handler.origin.rows = slice(first, first + self.images) if keeps else None
        for edited in self.cross:
            handler = edited.handler
            handler.rows, handler.step = rows, cross
            looks = handler.words is not None or id(handler) in recorded
            handler.live = looks or cross is not None or keeps
        active = [j for j, now in enumerate(self.edits.self_(step, steps)) if now]
        follow = self._rows_for(active, rows[0].start, device) if active else None
        height, width = arguments["sample"].shape[-2:]
        most = area_limit((height, width), self.side)
        for itself in self.selfs:
            h, w = itself.site.grid((height, width))
            itself.handler.live = (follow is not None or keeps) and h * w <= most
            itself.handler.follow = follow

    def _cross_step(
        self, step: int, steps: int, start: int, device: torch.device
    ) -> CrossStep | None:
        """Gives what a step does; the same object again in all steps of a phase."""
        if not self.edits.siblings:
            return None
        phase = (self.edits.phase(step, steps), start, self.batch, device)
        if phase not in self._crosses:
            self._crosses[phase] = self._make_cross(step, steps, start, device)
        return self._crosses[phase]

    def _make_cross(
        self, step: int, steps: int, start: int, device: torch.device
    ) -> CrossStep | None:
        mix, own, active = self.edits.cross(step, steps)
        chosen = [j for j, now in enumerate(active) if now]
        if not chosen:
            return None
        per_row = [j for j in chosen for _ in range(self.images)]
        owns = bool(own[chosen].any())
        follows = not owns and bool((mix[chosen] == torch.eye(*mix.shape[1:])).all())
        return CrossStep(
            rows=self._rows_for(chosen, start, device),
            mix=None if follows else mix[per_row].to(device),
            own=own[per_row].to(device),
            owns=owns,
        )

    def _rows_for(self, siblings: list[int], start: int, device: torch.device) -> Rows:
        chosen = (tuple(siblings), start, self.batch, device)
        if chosen not in self._rows_of:
            self._rows_of[chosen] = Rows.of(
                siblings, self.images, start, device, kept=self.reads, batch=self.batch
            )
        return self._rows_of[chosen]

    def after_call(self, prefix: str) -> None:
        """Takes what a denoiser call left."""
        if prefix or self.asleep or self.run is None or self.plan is None:
            super().after_call(prefix)
            return
        self._check_edited()
        step, steps = self.plan.steps[self.call], len(self.plan.timesteps)
        ends = self.plan.ends_step(self.call)
        if self.words is not None and self.pending is not None and self.total is not None:
            self.pending += self.words
            self.calls += 1
            if ends:
                self.total += self.pending / self.calls
                self.pending.zero_()
                self.calls = 0
        if ends:
            self.ended = (step, steps)
        super().after_call(prefix)

    def _check_edited(self) -> None:
        for edited in self.layers:
            if edited.handler.live and not edited.handler.seen:
                name = type(innermost(edited.site.module.processor)).__name__
                raise RuntimeError(
                    f"layer {edited.site.name} computes attention where xattn can't see it "
                    f"({name}); call pipe.unet.set_default_attn_processor() first"
                )

    def end_run(self) -> None:
        """Completes the run under way; what LocalBlend needs after its last step stays."""
        if self.kept is not None and not self.reads and self.run is not None:
            self.kept.share_keys(edited.site.name for edited in self.cross)
        super().end_run()
        self._rows_of, self._crosses = {}, {}
        for layer in self.layers:
            layer.handler.live = False
        for cross in self.cross:
            cross.handler.step = cross.handler.words = cross.handler.origin = None
        for itself in self.selfs:
            itself.handler.follow = itself.handler.origin = None

    def _end_call(self) -> None:
        """Is told that a pipeline's call came to its end, without a fault."""
        self.end_run()
        self._check_blended()

    # -- LocalBlend --------------------------------------------------------------------------------

    @property
    def must_blend(self) -> bool:
        """Whether ``blend`` has anything to do."""
        return self.kept is not None or any(s.blend is not None for s in self.edits.siblings)

    def check_left(self) -> None:
        """Raises RuntimeError where the block is left with its last step not blended."""
        if self.run is None:  # whole, or nobody's any more
            self._check_blended()

    def _check_blended(self) -> None:
        ended, self.ended = self.ended, None
        if ended is None or not self.must_blend:
            self.ended = ended
            return
        how = (
            "call the pipeline with callback_on_step_end=session.callback"
            if isinstance(self.source, PipelineSource)
            else "call latents = session.blend(latents) after each of the scheduler's steps"
        )
        raise RuntimeError(f"step {ended[0]} ended and LocalBlend wasn't applied: {how}")

    def blend(self, latents: Tensor) -> Tensor:
        """Gives the latents after a step, with the source's outside of LocalBlend's masks.

        Between the two halves of a second-order step it gives them back as they are.

        Args:
            latents: (images x prompts, channels, height, width), prompt-major.
        """
        if self.ended is None:
            return latents
        (step, steps), self.ended = self.ended, None
        n = self.images
        if len(latents) != n * len(self.texts):
            raise ValueError(
                f"latents has {len(latents)} rows; expected {n} for each of the prompts "
                f"{self.texts!r}"
            )
        source, maps = self._source(latents, step)
        parts = [] if self.reads else [source]
        for j, sibling in enumerate(self.edits.siblings):
            rows = self.rows_of(j)
            grid = (latents.shape[-2], latents.shape[-1])
            target = None if self.total is None else self.total[rows]
            mask = None
            if sibling.blend is not None and begun(step, steps, sibling.blend.start):
                mask = self._mask(j, sibling.blend, maps, target, grid)
            self.masks[j].append(mask)
            parts.append(
                latents[rows] if mask is None else masks.blended(latents[rows], source, mask)
            )
        return torch.cat(parts)

    def _source(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Gives the source's latents after a step and its maps up to it; keeps them if asked."""
        if self.kept is not None and self.reads:
            maps = self.kept.maps[step]
            return self.kept.latents[step].to(latents), maps.to(latents.device)
        source = latents[: self.images]
        maps_ = None if self.total is None else self.total[: self.images]
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
        """Gives a sibling's mask, (images, height, width)."""
        places, drawn = self._places[j], self._drawn[j]
        assert places is not None
        if source is None or target is None:
            assert drawn is not None  # without words there is a mask
            return drawn.expand(self.images, -1, -1)
        if drawn is None:
            return masks.pair_mask(source, target, places, grid, how.threshold)
        less = masks.left_out(source, target, places, grid, how.threshold)
        return drawn.expand(self.images, -1, -1) * ~less


_SMALLER = "; draw fewer steps or images, give a smaller side=, or leave keep_source=True out"


def area_limit(latent: tuple[int, int], side: int | None) -> int:
    """Gives the most queries of a layer whose self-attention follows the source.

    16 x 16, or a quarter of the latents' height and width where that is more: as in the paper's
    code for Stable Diffusion at 512 pixels, and 32 x 32 for SDXL at 1024.
    """
    if side is not None:
        return side * side
    return max(16 * 16, -(-latent[0] // 4) * -(-latent[1] // 4))


def _layers(source: PipelineSource | LoopSource) -> tuple[list[Cross], list[Self]]:
    """Gives the denoiser's cross-attention and self-attention layers, each with its handler."""
    sites = find_sites(source.denoiser)
    added = [site.name for site in sites if site.kind == "added"]
    if added:
        raise ValueError(
            f"layer {added[0]} attends to text and image in one call; edits know models with "
            "cross-attention of its own (Stable Diffusion 1, 2, XL)"
        )
    text_sites(sites)  # raises where there is none
    cross = [Cross(s, CrossEditing(s.name, s.heads)) for s in sites if s.kind == "cross"]
    selfs = [Self(s, SelfEditing(s.name, s.heads)) for s in sites if s.kind == "self"]
    return cross, selfs


def _alike(one: Tensor, two: Tensor) -> bool:
    """Tells whether embeddings are of one text, to the rounding of whoever made them."""
    if torch.equal(one, two):
        return True
    one, two = one.float(), two.float()
    return bool((one - two).abs().max() <= 0.02 * one.abs().max())


def _refuse_sliced(processor: Any) -> None:
    name = type(innermost(processor)).__name__
    if name.startswith("Sliced"):
        raise TypeError(
            f"{name} computes a few rows at a time, and edits need the source beside its "
            "siblings; call pipe.disable_attention_slicing() first"
        )
