"""The recorder: recordings in a source's layers, driven by its calls, writing to a tape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xattn.maps.select import kept_positions
from xattn.models.unet import Site, find_sites, text_sites
from xattn.processors.affinity import Affinity
from xattn.processors.call import Handler
from xattn.processors.editing import CrossEditing, SelfEditing
from xattn.processors.install import install, remove, remove_stored
from xattn.processors.recording import Recording
from xattn.processors.wrapping import handler_of, innermost, is_wrapped, unwrap
from xattn.records import folder, room, stores
from xattn.records.buffer import Tape
from xattn.records.options import Options
from xattn.records.run import Layer, Run, info_versions
from xattn.records.shape import Shape
from xattn.results.trace import Trace
from xattn.session import clock, patching, threads
from xattn.session.loop import LoopSource
from xattn.session.pipeline import PipelineSource, Source
from xattn.session.rows import conditional_block, text_states, usual_block
from xattn.session.source import Asked


@dataclass
class Tap:
    """A recorded layer: where it is, the processor that stands there now, and its recording."""

    site: Site
    prefix: str
    recording: Recording


@dataclass(frozen=True)
class Matched:
    """Rows that were found in a denoiser call, and the text that they were found in.

    The text itself is kept, and not its address: memory that is freed is used again.

    Attributes:
        states: the call's text.
        version: how often it had been written into; None where torch doesn't count.
        batch: rows of the call.
        rows: what was found.
    """

    states: Tensor | None
    version: int | None
    batch: int
    rows: tuple[slice, ...] | None

    @classmethod
    def of(cls, states: Tensor | None, batch: int, rows: tuple[slice, ...] | None) -> Matched:
        """Keep what was found in a call."""
        return cls(states, _version(states), batch, rows)

    def is_of(self, states: Tensor | None, batch: int) -> bool:
        """Whether a call has this very text, unchanged; never where torch counts no changes."""
        if states is not self.states or batch != self.batch:
            return False
        return states is None or (not states.is_inference() and _version(states) == self.version)


def _version(states: Tensor | None) -> int | None:
    return None if states is None or states.is_inference() else states._version


AFFINITY_CELLS = 32 * 32
"""The most queries of a grid whose self-attention is kept: 2 MB for each image."""


class Recorder:
    """Puts recordings into a source's layers, drives them by its calls, and takes them out."""

    def __init__(self, source: Source, options: Options) -> None:
        self.source = source
        self.options = options
        self.trace = Trace(runs=[])
        self.owner = threads.Owner()
        self.taps = self._make_taps()
        self.affinities = self._make_affinities()
        self.run: Run | None = None
        self.tape: Tape | None = None
        self.clock: clock.Clock | None = None
        self.call = 0
        self.last: float | None = None
        self.asleep = True
        self.states: Tensor | None = None  # the text of the call under way
        self.next: Asked | None = None  # of an encode_prompt while a run was under way
        self.matched: dict[str, Matched] = {}
        if isinstance(source, PipelineSource):
            source.on_prompt = self._before_prompt
            source.on_asked = self._after_prompt
            source.on_end = self.end_run
            source.on_pictures = self._keep_pictures

    @property
    def plan(self) -> clock.Schedule | None:
        """The schedule of the run under way; None where nobody knows it."""
        return None if self.clock is None else self.clock.plan

    def _make_taps(self) -> list[Tap]:
        taps: list[Tap] = []
        globs = self.options.layers
        wanted = [globs] if isinstance(globs, str) else globs
        for prefix, model in self.source.components().items():
            if not prefix:
                sites = find_sites(model)
                main = wanted and [g for g in wanted if not g.startswith("controlnet.")]
                chosen = text_sites(sites, main or None) if main or not wanted else []
            else:
                named = any(g.startswith("controlnet.") for g in wanted or ())
                sites = find_sites(model, prefix) if named else ()
                chosen = [s for s in sites if any(fnmatchcase(s.name, g) for g in wanted or ())]
                chosen = [s for s in chosen if s.kind != "self"]
            taps += [Tap(s, prefix, Recording(s.name, s.heads)) for s in chosen]
        if not taps:
            raise ValueError(f"layers={globs!r} fits no layer that attends to text")
        return taps

    def _make_affinities(self) -> list[tuple[Site, Affinity]]:
        if not self.options.affinity:
            return []
        sites = [s for s in find_sites(self.source.denoiser) if s.kind == "self"]
        if not sites:
            raise ValueError("affinity=True: this model has no self-attention of its own")
        return [(site, Affinity(site.name, site.heads)) for site in sites]

    # -- installing and restoring --------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Puts the processors and hooks in, and takes them out whatever happens."""
        with ExitStack() as stack:
            stack.callback(self._eject)
            self._inject()
            for prefix, model in self.source.components().items():
                stack.enter_context(
                    patching.around_calls(model, self._before(prefix), self._after(prefix))
                )
            stack.enter_context(self.source.watched())
            stack.callback(self.end_run)
            yield

    @property
    def handled(self) -> list[tuple[Site, Handler]]:
        """The layers that are wrapped, each with its handler."""
        return [*((tap.site, tap.recording) for tap in self.taps), *self.affinities]

    def _inject(self) -> None:
        for site, handler in self.handled:
            install(site.module, handler)

    def _eject(self) -> None:
        for site, handler in self.handled:
            remove(site.module, handler)
        for model in self.source.components().values():
            remove_stored(model)

    def _refuse_inside_edits(self) -> None:
        """Refuses to stand between a layer and those who edit it: they call it by parts."""
        for site, handler in self.handled:
            below = site.module.processor
            while is_wrapped(below) and handler_of(below) is not handler:
                below = unwrap(below)
            while is_wrapped(below := unwrap(below)):
                other = handler_of(below)
                if isinstance(other, SelfEditing | CrossEditing) and other.live:
                    raise RuntimeError(
                        "a recording or an edit was begun inside editing(), where rows are edited "
                        "already: begin the recording first, or read session.trace"
                    )

    def _before_prompt(self) -> None:
        pipe = getattr(self.source, "pipe", None)
        if pipe is not None and pipe.unet is not self.source.denoiser:
            raise RuntimeError(
                "pipe.unet was exchanged inside the block, and the new one isn't recorded; "
                "exchange it first, then record(pipe)"
            )
        if self.run is not None:
            self.owner.check()
        else:
            self.owner.claim()  # from here on: two pipelines can share one denoiser

    def _after_prompt(self, asked: Asked) -> None:
        if self.run is None:
            self.source.asked = asked
        else:  # the run under way was broken off, or somebody only wants embeddings
            self.next = asked

    # -- the clock -----------------------------------------------------------------------------

    def _before(self, prefix: str) -> patching.Before:
        return lambda arguments: self.before_call(prefix, arguments)

    def _after(self, prefix: str) -> patching.After:
        def after(output: Any) -> None:
            if not prefix:
                self._estimate(output)
            self.after_call(prefix)

        return after

    def before_call(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Gets ready for a denoiser call: at a run's first, knows all of its axes and bytes."""
        if self.source.asked is not None or self.next is not None:
            self.owner.check()
        awake = self._follows if isinstance(self.source, PipelineSource) else self._loops
        self.asleep = not awake(prefix, arguments)
        if not self.asleep:
            self._inject()  # whoever replaced processors in between is wrapped in turn
            self._refuse_inside_edits()
            if self.run is None:
                self.begin_run(prefix, arguments)
            self._aim(prefix, arguments)
            if not prefix:
                self.sample: Tensor = arguments["sample"]
        for tap in self.taps:
            if tap.prefix == prefix:
                tap.recording.live = not self.asleep
                tap.recording.seen = False
        for _, handler in self.affinities:
            if not prefix:
                handler.live = not self.asleep and handler.buffer is not None
                handler.seen = False

    def _follows(self, prefix: str, arguments: dict[str, Any]) -> bool:
        """Tells whether a call belongs to the pipeline's run; begins and ends runs by that.

        Raises:
            RuntimeError: the call is of the run, but not the one that its schedule says, or not
                of the text that it was asked for.
        """
        if self.clock is not None and self.run is not None:
            ours = self._rows(prefix, arguments) is not None
            timely = self.clock.is_at(self.call, arguments["timestep"])
            fresh = self.next is not None and self._matches(self.next, arguments)
            if ours and timely and not (fresh and self.call == 0):
                return True
            if fresh:
                self._begin_next()
                return True
            if ours:
                raise RuntimeError(_untimely(arguments, self.clock.plan, self.call))
            if timely:
                raise RuntimeError(
                    "the denoiser follows a text that this call of the pipeline didn't ask for "
                    "(were the embeddings changed during the run?): its words would be labelled "
                    "wrong; record the UNet itself, with rows= and prompt="
                )
            return False  # another pipeline's, which shares the denoiser
        return self.source.asked is not None and self._matches(self.source.asked, arguments)

    def _begin_next(self) -> None:
        asked = self.next
        self.end_run()
        self.source.asked, self.next = asked, None
        self.owner.claim()

    def _matches(self, asked: Asked, arguments: dict[str, Any]) -> bool:
        states = text_states(arguments.get("encoder_hidden_states"))
        if states is None or asked.embeds is None:
            return False
        return conditional_block(states, asked.embeds) is not None

    def _loops(self, prefix: str, arguments: dict[str, Any]) -> bool:
        """In a loop of one's own, sees where steps and runs end, and which calls count.

        Raises:
            RuntimeError: the calls don't follow the scheduler, or two passes can't be told apart.
        """
        if self.options.embeds is not None and self._rows(prefix, arguments) is None:
            return False  # guidance's other pass
        if self.run is None:
            return True
        if self.clock is not None:
            if not self.clock.is_at(self.call, arguments["timestep"]):
                if not self.clock.is_at(0, arguments["timestep"]) or self._two_passes(arguments):
                    raise RuntimeError(
                        _untimely(arguments, self.clock.plan, self.call)
                        + "; guidance in two passes needs embeds="
                    )
                self.end_run()  # broken off, and begun anew
            return True
        timestep = clock.timestep_of(arguments["timestep"])
        assert self.last is not None
        assert self.tape is not None
        if timestep == self.last:
            if self._two_passes(arguments):
                raise RuntimeError(
                    f"the UNet was called twice at timestep {timestep:g} with different texts: "
                    "pass embeds=, the prompts' embeddings, to tell which of them counts"
                )
            return True
        self.tape.end_step()
        self._tell_done()
        if timestep > self.last:
            self.end_run()
        else:
            self.run.timesteps += (timestep,)
        self.last = timestep
        return True

    def _two_passes(self, arguments: dict[str, Any]) -> bool:
        """Tells whether a call has another text than the one before."""
        if self.options.embeds is not None or self.options.rows is not None:
            return False
        states = text_states(arguments.get("encoder_hidden_states"))
        before = self.states
        if states is None or before is None:
            return False
        return states.shape != before.shape or not torch.equal(states, before)

    def _text_of(self, arguments: dict[str, Any]) -> Tensor | None:
        """Return a copy of a call's text where the next call's must be compared with it."""
        if not isinstance(self.source, LoopSource) or self.options.embeds is not None:
            return None
        states = text_states(arguments.get("encoder_hidden_states"))
        return None if states is None else states.detach().clone()  # a loop may write into it

    def _tell_done(self) -> None:
        """Says how many steps can be read: an average can't be before its end."""
        if self.run is not None and self.tape is not None and "step" in self.options.keep:
            self.run.done = self.tape.steps

    def begin_run(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Lays out a run's axes and buffers, and refuses what would not fit."""
        asked = self.source.asked
        assert asked is not None
        sample: Tensor = arguments["sample"]
        if sample.ndim != 4:
            raise RuntimeError(
                f"the denoiser's sample has {sample.ndim} axes; xattn records images, "
                "(rows, channels, height, width), and no video yet"
            )
        if isinstance(self.source, LoopSource):
            asked = self._as_many_images(asked, len(sample))
        latent = (int(sample.shape[-2]), int(sample.shape[-1]))
        self.clock = self.source.clock(arguments["timestep"])
        self.matched = {}
        plan = self.plan
        positions = kept_positions(asked.prompts, self.options.words)
        layers, members = self._layers(latent)
        shape = Shape(
            layers=layers,
            images=len(asked.rows),
            tokens=len(positions),
            steps=None if plan is None else len(plan.timesteps),
            keep=self.options.keep,
            dtype=self.options.dtype,
        )
        to = self.options.to
        room.check_room(shape, sample.device, to)
        if isinstance(to, Path):
            to = stores.new_folder(to)
        self.tape = Tape(shape, sample.device, to)
        self.call, self.last = 0, None
        if plan is None:
            self.last = clock.timestep_of(arguments["timestep"])
        compiled = patching.is_compiled(self.source.denoiser)
        tokens = _index(positions, sample.device, compiled)
        for tap, (i, share) in zip(self.taps, members, strict=True):
            tap.recording.tokens = tokens
            tap.recording.buffer = self.tape.views[i]
            tap.recording.share = share
            tap.recording.seen = False
            if compiled:  # one graph for prompts of every length
                patching.mark_dynamic(self.tape.views[i], 2)
        self.run = Run(
            prompts=asked.prompts,
            rows=asked.rows,
            positions=positions,
            layers=layers,
            timesteps=(self.last,) if self.last is not None else plan.timesteps,  # type: ignore[union-attr]
            latent=latent,
            keep=self.options.keep,
            store=self.tape.store,
            info={**self.source.facts(), "versions": dict(info_versions())},
        )
        if isinstance(self.source, PipelineSource):
            self.source.pictures = self.run.images
        if self.options.affinity:
            self.run.affinity = self._lay_out_affinities(latent, len(asked.rows), sample.device)
        if self.options.previews:
            self.run.estimates = self._room_for_estimates(sample, asked, plan)
        self.trace.runs.append(self.run)
        self.owner.claim()

    def _lay_out_affinities(
        self, latent: tuple[int, int], images: int, device: torch.device
    ) -> Tensor:
        """Makes room for self-attention of the finest grid that isn't too fine, and points to it.

        Returns:
            Where it will be kept, float16 (images, height, width, height, width).
        """
        grids = {site.grid(latent) for site, _ in self.affinities}
        fitting = [g for g in grids if g[0] * g[1] <= AFFINITY_CELLS]
        grid = max(fitting) if fitting else min(grids)
        cells = grid[0] * grid[1]
        chosen = [(site, each) for site, each in self.affinities if site.grid(latent) == grid]
        room.check_room_for("affinities take", 6 * images * cells**2, device)
        buffer = torch.zeros(images, cells, cells, device=device)
        for _, handler in self.affinities:
            handler.buffer = None
        for _, handler in chosen:
            handler.buffer, handler.share = buffer, 1 / len(chosen)
        return torch.zeros(images, *grid, *grid, dtype=torch.float16)

    def _as_many_images(self, asked: Asked, batch: int) -> Asked:
        """Gives a loop's rows their prompts: as many images of each as the batch has room for."""
        wanted = len(asked.rows)
        if self.options.rows is not None:
            images = len(range(*self.options.rows.indices(batch)))
        elif asked.embeds is not None:
            images = len(asked.embeds)
        elif batch in (wanted, 2 * wanted) or batch % (2 * wanted):
            images = wanted
        else:
            images = batch // 2
        if images % len(asked.prompts):
            raise RuntimeError(
                f"{images} rows follow the prompts, which are {len(asked.prompts)}: give "
                "prompt= a text for each row"
            )
        if images != wanted:
            each = images // len(asked.prompts)
            asked = replace(asked, rows=tuple(i // each for i in range(images)))
        return asked

    def _room_for_estimates(
        self, sample: Tensor, asked: Asked, plan: clock.Schedule | None
    ) -> Tensor:
        if plan is None:
            raise ValueError("previews=True needs scheduler=, to know the noise of each step")
        self.source.clean(sample[:0], sample[:0], plan.timesteps[0])  # or say why it can't be had
        channels = int(getattr(self.source.denoiser, "config", {}).get("out_channels", 4))
        size = (len(plan.timesteps), len(asked.rows), channels, *sample.shape[-2:])
        return torch.zeros(size, dtype=torch.float16, device=sample.device)

    def _layers(
        self, latent: tuple[int, int]
    ) -> tuple[tuple[Layer, ...], list[tuple[int, float | None]]]:
        """Gives the kept layers, and for each tap which of them it writes and what share."""
        sites = [tap.site for tap in self.taps]
        if "layer" in self.options.keep:
            kept = tuple(Layer(s.name, s.grid(latent), s.heads) for s in sites)
            return kept, [(i, None) for i in range(len(kept))]
        single = [Layer(s.name, s.grid(latent), s.heads) for s in sites]
        keys = [(layer.grid, layer.middle) for layer in single]
        groups: dict[Any, list[str]] = {}
        for key, layer in zip(keys, single, strict=True):
            groups.setdefault(key, []).append(layer.name)
        kept = tuple(
            Layer(f"mean@{h}x{w}" + ".middle" * middle, (h, w), 1, tuple(names))
            for ((h, w), middle), names in groups.items()
        )
        order = list(groups)
        return kept, [(order.index(key), 1 / len(groups[key])) for key in keys]

    def _aim(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Points the layers of a component at the rows of this call's batch that count."""
        rows = self._rows(prefix, arguments)
        assert rows is not None
        assert self.run is not None
        self.states = self._text_of(arguments)
        batch = len(arguments["sample"])
        images = sum(span.stop - span.start for span in rows)
        for tap in self.taps:
            if tap.prefix == prefix:
                tap.recording.rows = rows
                tap.recording.batch = batch
                tap.recording.images = images
        if not prefix:
            for _, handler in self.affinities:
                handler.rows = rows[0]
        if images < len(self.run.rows) and self.tape is not None:
            self.tape.staging.zero_()  # guidance was cut off: the negative prompt has no rows

    def _rows(self, prefix: str, arguments: dict[str, Any]) -> tuple[slice, ...] | None:
        """Gives the rows of a call's batch that are recorded; None where the text isn't ours."""
        states = text_states(arguments.get("encoder_hidden_states"))
        batch = len(arguments["sample"])
        known = self.matched.get(prefix)
        if known is None or not known.is_of(states, batch):
            found = self._find_rows(states, batch)
            known = self.matched[prefix] = Matched.of(states, batch, found)
        return known.rows

    def _find_rows(self, states: Tensor | None, batch: int) -> tuple[slice, ...] | None:
        asked = self.source.asked
        assert asked is not None
        if self.options.rows is not None:
            start, stop, _ = self.options.rows.indices(batch)
            return (slice(start, stop),)
        if asked.embeds is None:
            images = len(asked.rows if self.run is None else self.run.rows)
            return (usual_block(batch, images),)
        images = len(asked.embeds)
        span = None if states is None else conditional_block(states, asked.embeds)
        if span is None:
            return None
        if len(asked.rows) == images or batch == images:
            return (span,)
        return (span, slice(0, images) if span.start else slice(images, 2 * images))

    def _estimate(self, output: Any) -> None:
        """Keeps what the denoiser takes the clean latents to be, where previews are wanted."""
        run, plan = self.run, self.plan
        if self.asleep or run is None or run.estimates is None or plan is None:
            return
        noise = output[0] if isinstance(output, tuple) else output.sample
        rows = self.taps[0].recording.rows[0] if self.taps else slice(None)
        sample, guided = self.sample[rows], noise[rows]
        scale = run.info.get("guidance_scale")
        if scale and len(noise) == 2 * len(guided):
            other = noise[: len(guided)] if rows.start else noise[len(guided) :]
            guided = other + scale * (guided - other)
        step = plan.steps[self.call]
        clean = self.source.clean(sample, guided, plan.timesteps[step]).detach()
        run.estimates[step].copy_(clean, non_blocking=True)

    def after_call(self, prefix: str) -> None:
        """Hands on what a denoiser call left, and ends the run with its last call."""
        if prefix or self.asleep or self.run is None or self.tape is None:
            return
        if not self.owner.is_here:
            return  # the end of a call that another thread began earlier
        self._check_seen()
        self.tape.end_call(self.plan is not None and self.plan.ends_step(self.call))
        self._tell_done()
        self.call += 1
        if self.plan is not None and self.call >= self.plan.calls:
            self.end_run()

    def _check_seen(self) -> None:
        blind = [tap.site for tap in self.taps if not tap.recording.seen]
        blind += [site for site, each in self.affinities if each.live and not each.seen]
        if blind:
            site = blind[0]
            name = type(innermost(site.module.processor)).__name__
            if self.call:
                raise RuntimeError(
                    f"layer {site.name} was left out of a denoiser call (is its attention cached "
                    "or skipped?): its maps would be those of another step; record without it"
                )
            raise RuntimeError(
                f"layer {site.name} computes attention where xattn can't see it ({name}); call "
                "pipe.unet.set_default_attn_processor() or pipe.unet.set_attention_backend"
                '("native") first'
            )

    def end_run(self) -> None:
        """Completes the run under way, whole or cut short."""
        if isinstance(self.source, PipelineSource):
            self.source.asked = self.next = None
        if self.run is None or self.tape is None:
            return
        run, finished, self.run, self.tape = self.run, self.tape, None, None
        self.matched = {}
        for tap in self.taps:
            tap.recording.live = False
            tap.recording.buffer = None
        self._keep_affinity(run)
        self.owner.release()
        if run.estimates is not None:
            run.estimates = run.estimates.cpu()
        if self.plan is None:
            finished.end_step()
        finished.finish()
        run.done = finished.steps
        run.store = finished.store
        if finished.folder is not None:
            folder.write_header(finished.folder.store.folder, run)

    def _keep_affinity(self, run: Run) -> None:
        """Averages self-attention over the calls of a run that ends, one cut short among them.

        Each call adds shares that sum to one, so the sums say how many calls there were.
        """
        buffers = [each.buffer for _, each in self.affinities if each.buffer is not None]
        if run.affinity is not None and buffers:
            sums = buffers[0].sum(-1, keepdim=True).clamp_min(1e-6)
            run.affinity.copy_((buffers[0] / sums).view(run.affinity.shape))
        for _, handler in self.affinities:
            handler.live, handler.buffer = False, None

    def _keep_pictures(self) -> None:
        """Puts the pictures of the run that just ended with its streamed maps."""
        run = self.trace.runs[-1] if self.trace.runs else None
        if run is not None and isinstance(run.store, folder.FolderStore) and self.run is None:
            folder.write_header(run.store.folder, run)


def _index(positions: Sequence[int], device: torch.device, compiled: bool) -> slice | Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions) and not compiled:
        return slice(first, last + 1)
    index = torch.tensor(positions, device=device)
    if compiled:
        patching.mark_dynamic(index, 0)
    return index


def _untimely(arguments: dict[str, Any], plan: clock.Schedule, call: int) -> str:
    timestep = clock.timestep_of(arguments["timestep"])
    expected = f"{plan.at[call]:g}" if call < plan.calls else "none"
    return (
        f"the denoiser was called at timestep {timestep:g} where the schedule's next is "
        f"{expected}: it is called more often than once for each, and which call is which can't "
        "be known"
    )
