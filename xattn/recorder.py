"""The recorder: recordings in a source's layers, driven by its calls, writing to a tape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xattn import files, hooks, prompts, tape
from xattn.options import Options
from xattn.processors.recording import Recording
from xattn.processors.wrapping import Handler, handler_of, is_wrapped, unwrap, wrap
from xattn.runs import Layer, Run, info_versions
from xattn.sites import Site, find_sites, text_sites
from xattn.sources import Asked, LoopSource, PipelineSource, Source
from xattn.trace import Trace


@dataclass
class Tap:
    """A recorded layer: where it is, the processor that stands there now, and its recording."""

    site: Site
    prefix: str
    recording: Recording


class Recorder:
    """Puts recordings into a source's layers, drives them by its calls, and takes them out."""

    def __init__(self, source: Source, options: Options) -> None:
        self.source = source
        self.options = options
        self.trace = Trace(runs=[])
        self.owner = hooks.Owner()
        self.taps = self._make_taps()
        self.run: Run | None = None
        self.tape: tape.Tape | None = None
        self.plan: hooks.Schedule | None = None
        self.call = 0
        self.last: float | None = None
        self.matched: dict[str, tuple[Any, tuple[slice, ...]]] = {}
        source.on_prompt = self._new_prompt

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

    # -- installing and restoring --------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Puts the processors and hooks in, and takes them out whatever happens."""
        with ExitStack() as stack:
            stack.callback(self._eject)
            self._inject()
            for prefix, model in self.source.components().items():
                stack.enter_context(
                    hooks.around_calls(model, self._before(prefix), self._after(prefix))
                )
            stack.enter_context(self.source.watched())
            stack.callback(self.end_run)
            yield

    def _inject(self) -> None:
        for tap in self.taps:
            found = tap.site.module.processor
            if not _wraps(found, tap.recording):
                _set_processor(tap.site.module, wrap(found, tap.recording))

    def _eject(self) -> None:
        for tap in self.taps:
            tap.recording.over = True
            tap.recording.live = False
            found = tap.site.module.processor
            restored = found
            # a wrapper that still holds ours takes it along when it leaves
            while is_wrapped(restored) and handler_of(restored).over:  # type: ignore[union-attr]
                restored = unwrap(restored)
            if restored is not found:
                _set_processor(tap.site.module, restored)

    def _new_prompt(self) -> None:
        if self.run is not None:
            self.owner.check()
        self.end_run()
        self.owner.claim()  # from here on: two pipelines can share one denoiser

    # -- the clock -----------------------------------------------------------------------------

    def _before(self, prefix: str) -> hooks.Before:
        return lambda arguments: self.before_call(prefix, arguments)

    def _after(self, prefix: str) -> hooks.After:
        def after(output: Any) -> None:
            if not prefix:
                self._estimate(output)
            self.after_call(prefix)

        return after

    def before_call(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Gets ready for a denoiser call: at a run's first, knows all of its axes and bytes."""
        sleeping = self.source.asked is None
        if not prefix:
            self.sample: Tensor = arguments["sample"]
        if not sleeping:
            self.owner.check()
            self._tick(prefix, arguments)
            self._inject()  # whoever replaced processors in between is wrapped in turn
            if self.run is None:
                self.begin_run(arguments)
            self._aim(prefix, arguments)
        for tap in self.taps:
            if tap.prefix == prefix:
                tap.recording.live = not sleeping
        if not sleeping and not prefix and self.tape is not None:
            self.tape.start_call()

    def _tick(self, prefix: str, arguments: dict[str, Any]) -> None:
        """In a loop of one's own, sees where steps and runs end."""
        if prefix or not isinstance(self.source, LoopSource) or self.run is None:
            return
        if self.plan is not None:
            if self.call >= self.plan.calls:
                self.end_run()
            return
        timestep = _timestep(arguments)
        if self.last is not None and timestep != self.last and self.tape is not None:
            self.tape.end_step()
            self.run.done = self.tape.steps
        if self.last is not None and timestep > self.last:
            self.end_run()
        elif timestep != self.last:
            self.run.timesteps += (timestep,)
        self.last = timestep

    def begin_run(self, arguments: dict[str, Any]) -> None:
        """Lays out a run's axes and buffers, and refuses what would not fit."""
        asked = self.source.asked
        assert asked is not None
        sample: Tensor = arguments["sample"]
        timestep = _timestep(arguments)
        latent = (int(sample.shape[-2]), int(sample.shape[-1]))
        plan = self.source.schedule(timestep)
        positions = kept_positions(asked.prompts, self.options.words)
        layers, members = self._layers(latent)
        shape = tape.Shape(
            layers=layers,
            images=len(asked.rows),
            tokens=len(positions),
            steps=None if plan is None else len(plan.timesteps),
            keep=self.options.keep,
            dtype=self.options.dtype,
        )
        to = self.options.to
        if isinstance(to, Path):
            to = to / f"run-{len(self.trace.runs):05d}"
        tape.check_room(shape, sample.device, to)
        self.tape = tape.Tape(shape, sample.device, to)
        self.plan, self.call, self.matched = plan, 0, {}
        self.last = timestep
        compiled = hooks.is_compiled(self.source.denoiser)
        tokens = _index(positions, sample.device, compiled)
        for tap, (i, share) in zip(self.taps, members, strict=True):
            tap.recording.tokens = tokens
            tap.recording.buffer = self.tape.views[i]
            tap.recording.share = share
            tap.recording.seen = False
            if compiled:  # one graph for prompts of every length
                hooks.mark_dynamic(self.tape.views[i], 2)
        self.run = Run(
            prompts=asked.prompts,
            rows=asked.rows,
            positions=positions,
            layers=layers,
            timesteps=(timestep,) if plan is None else plan.timesteps,
            latent=latent,
            keep=self.options.keep,
            store=self.tape.store,
            info={**self.source.facts(), "versions": dict(info_versions())},
        )
        self.source.pictures = self.run.images
        if self.options.previews:
            self.run.estimates = self._room_for_estimates(sample, asked, plan)
        self.trace.runs.append(self.run)
        self.owner.claim()

    def _room_for_estimates(
        self, sample: Tensor, asked: Asked, plan: hooks.Schedule | None
    ) -> Tensor:
        if plan is None:
            raise ValueError("previews=True needs scheduler=, to know the noise of each step")
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
        grids: dict[tuple[int, int], list[Site]] = {}
        for site in sites:
            grids.setdefault(site.grid(latent), []).append(site)
        kept = tuple(
            Layer(f"mean@{h}x{w}", (h, w), 1, tuple(s.name for s in group))
            for (h, w), group in grids.items()
        )
        order = list(grids)
        return kept, [(order.index(s.grid(latent)), 1 / len(grids[s.grid(latent)])) for s in sites]

    def _aim(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Points the layers of a component at the rows of this call's batch that count."""
        states = hooks.text_states(arguments.get("encoder_hidden_states"))
        batch = len(arguments["sample"])
        key = (batch, None if states is None else (states.data_ptr(), states.shape))
        known = self.matched.get(prefix)
        if known is None or known[0] != key:
            known = (key, self._rows(states, batch))
            self.matched[prefix] = known
            for tap in self.taps:
                if tap.prefix == prefix:
                    tap.recording.rows = known[1]

    def _rows(self, states: Tensor | None, batch: int) -> tuple[slice, ...]:
        asked = self.source.asked
        assert asked is not None
        if self.options.rows is not None:
            return (self.options.rows,)
        images = len(asked.rows) if asked.embeds is None else len(asked.embeds)
        span = None
        if asked.embeds is not None and states is not None:
            span = hooks.conditional_block(states, asked.embeds)
        span = span or hooks.usual_block(batch, images)
        if len(asked.rows) == images:
            return (span,)
        if batch == images:
            raise RuntimeError("negative=True, but this call has no rows of the negative prompt")
        other = slice(0, images) if span.start else slice(images, 2 * images)
        return (span, other)

    def _estimate(self, output: Any) -> None:
        """Keeps what the denoiser takes the clean latents to be, where previews are wanted."""
        run, plan = self.run, self.plan
        if run is None or run.estimates is None or plan is None:
            return
        noise = output[0] if isinstance(output, tuple) else output.sample
        (rows,) = self.matched[""][1][:1]
        sample, guided = self.sample[rows], noise[rows]
        scale = run.info.get("guidance_scale")
        if scale and len(noise) == 2 * len(guided):
            other = noise[: len(guided)] if rows.start else noise[len(guided) :]
            guided = other + scale * (guided - other)
        step = plan.steps[self.call]
        clean = self.source.clean(sample, guided, plan.timesteps[step])
        run.estimates[step].copy_(clean, non_blocking=True)

    def after_call(self, prefix: str) -> None:
        """Hands on what a denoiser call left, and ends the run with its last call."""
        if prefix or self.run is None or self.tape is None or self.source.asked is None:
            return
        if self.call == 0:
            self._check_seen()
        self.tape.end_call(self.plan is not None and self.plan.ends_step(self.call))
        self.run.done = self.tape.steps
        self.call += 1
        over = self.plan is not None and self.call >= self.plan.calls
        if over and isinstance(self.source, PipelineSource):
            self.end_run()

    def _check_seen(self) -> None:
        blind = [tap for tap in self.taps if not tap.recording.seen]
        if blind:
            site = blind[0].site
            name = type(unwrap(site.module.processor)).__name__
            raise RuntimeError(
                f"layer {site.name} computes attention where xattn can't see it ({name}); call "
                "pipe.unet.set_default_attn_processor() or pipe.unet.set_attention_backend"
                '("native") first'
            )

    def end_run(self) -> None:
        """Completes the run under way, whole or cut short."""
        if isinstance(self.source, PipelineSource):
            self.source.asked = None
        if self.run is None or self.tape is None:
            return
        run, finished, self.run, self.tape = self.run, self.tape, None, None
        for tap in self.taps:
            tap.recording.live = False
            tap.recording.buffer = None
        self.owner.release()
        if run.estimates is not None:
            run.estimates = run.estimates.cpu()
        if self.plan is None:
            finished.end_step()
        finished.finish()
        run.done = finished.steps
        run.store = finished.store
        if finished.folder is not None:
            files.write_header(finished.folder.store.folder, run)


def kept_positions(
    asked: Sequence[prompts.Prompt], words: Sequence[str | int] | None
) -> tuple[int, ...]:
    """Gives the token positions to keep: of the words named, or of every token of every prompt.

    Raises:
        ValueError: none of the prompts has a word; the error lists the words there are.
    """
    found: set[int] = set()
    if words is None:
        for prompt in asked:
            found.update(t.position for t in prompt.tokens)
            if prompt.is_anonymous:
                found.update(range(prompt.length))
        if not found:  # an empty prompt: its end token is all that can be looked at
            found.add(1)
        return tuple(sorted(found))
    for word in words:
        errors = []
        for prompt in asked:
            try:
                found.update(prompt.on_axis(word))
            except ValueError as error:
                errors.append(error)
        if len(errors) == len(asked):
            raise errors[0]
    return tuple(sorted(found))


def _index(positions: Sequence[int], device: torch.device, compiled: bool) -> slice | Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions) and not compiled:
        return slice(first, last + 1)
    index = torch.tensor(positions, device=device)
    if compiled:
        hooks.mark_dynamic(index, 0)
    return index


def _timestep(arguments: dict[str, Any]) -> float:
    return float(torch.as_tensor(arguments["timestep"]).flatten()[0])


def _wraps(processor: Any, recording: Handler) -> bool:
    while is_wrapped(processor):
        if handler_of(processor) is recording:
            return True
        processor = unwrap(processor)
    return False


def _set_processor(module: Any, processor: Any) -> None:
    """Sets a processor without ``set_processor``'s eviction of one that has weights."""
    if "processor" in module._modules:
        module._modules["processor"] = processor
    else:
        module.processor = processor
