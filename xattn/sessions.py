"""``record(pipe)``: where prompts, layers, processors, the clock and the tape meet."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn import files, hooks, prompts, tape
from xattn.processors.recording import Recording
from xattn.processors.wrapping import handler_of, is_wrapped, unwrap, wrap
from xattn.runs import AXES, Layer, Run, info_versions
from xattn.sites import Site, find_sites, text_sites
from xattn.trace import Trace

Words = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class Options:
    """What a recording keeps, and where; see ``record``."""

    keep: frozenset[str] = frozenset(("step", "layer"))
    words: tuple[str | int, ...] | None = None
    layers: str | tuple[str, ...] | None = None
    dtype: torch.dtype = torch.float16
    to: str | torch.device | Path = "cpu"
    negative: bool = False
    prompt: tuple[str, ...] | None = None
    rows: slice | None = None

    def __post_init__(self) -> None:
        unknown = self.keep - set(AXES)
        if unknown:
            raise ValueError(f"keep={sorted(unknown)!r}: the axes are {', '.join(AXES)}")
        if "head" in self.keep and "layer" not in self.keep:
            raise ValueError(
                'keep="head" needs "layer" too: heads of different layers have no mean'
            )
        if not self.dtype.is_floating_point:
            raise ValueError(f"dtype={self.dtype} can't hold probabilities; use torch.float16")


@contextmanager
def record(
    pipe: Any,
    *,
    keep: str | Iterable[str] = ("step", "layer"),
    words: Words = None,
    layers: str | Sequence[str] | None = None,
    dtype: torch.dtype = torch.float16,
    to: str | os.PathLike[str] | torch.device = "cpu",
    negative: bool = False,
    prompt: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    scheduler: Any = None,
    rows: slice | None = None,
) -> Iterator[Trace]:
    """Records what every word of a prompt attends to, at every step, while the block runs.

    The image stays the pipeline's own, bit for bit, and on leaving the pipeline is as it was
    found. Each call of the pipeline inside the block is a run of its own: the trace answers for
    the latest, ``trace[i]`` for the others.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline (text, img2img, inpaint, ControlNet ...), or,
            for a sampling loop of your own, its UNet.
        keep: which of the axes "step", "layer", "head" stay apart. Those left out are averaged
            while running, in float32, and take no memory.
        words: the words, phrases or token positions to keep; every token of the prompts by
            default.
        layers: names or globs of the layers to record, such as "up_blocks.*"; a ControlNet's
            layers are recorded only when named, by "controlnet.*".
        dtype: of the kept maps. Softmax and averages are float32 whatever it is.
        to: a device, or a folder to which maps are streamed, a safetensors file for each step.
        negative: records the negative prompts too, as further images after the others.
        prompt: the text, where it isn't known: prompts passed as embeddings, your own loop.
        tokenizer: for your own loop; a pipeline brings its own.
        scheduler: for your own loop, after ``set_timesteps``: so that the steps, and with them
            the bytes, are known ahead. Without it every new timestep counts as a step.
        rows: for your own loop, which rows of the UNet's batch follow the prompts. By default
            all of them where there are as many as prompts, else the second half, diffusers'
            [negative, positive].

    Yields:
        A ``Trace``, filled while the block runs.

    Raises:
        MemoryError: before the first step, when the maps would not fit where they go; the error
            names the options that would make them fit.
        ValueError: an option makes no sense, or a word isn't in the prompt (before any sampling).

    Example:
        >>> pipe = xattn.demo()
        >>> with xattn.record(pipe) as trace:
        ...     image = pipe("a red car on a green lawn").images[0]
        >>> trace.heatmap("red").overlay(image).save("red.png")
    """
    options = Options(
        keep=frozenset((keep,) if isinstance(keep, str) else keep),
        words=None if words is None else tuple([words] if isinstance(words, str | int) else words),
        layers=layers if layers is None or isinstance(layers, str) else tuple(layers),
        dtype=dtype,
        to=place(to),
        negative=negative,
        prompt=None if prompt is None else tuple([prompt] if isinstance(prompt, str) else prompt),
        rows=rows,
    )
    if isinstance(pipe, nn.Module):
        if tokenizer is None or prompt is None:
            raise ValueError("recording a UNet needs tokenizer= and prompt=, to know its words")
        source: Source = LoopSource(pipe, options, tokenizer, scheduler)
    else:
        source = PipelineSource(pipe, options)
    recorder = Recorder(source, options)
    with recorder.installed():
        yield recorder.trace


def place(to: str | os.PathLike[str] | torch.device) -> str | torch.device | Path:
    """Tells a device from a folder: "cpu", "cuda:1" are devices, any other text is a path."""
    if isinstance(to, torch.device):
        return to
    if isinstance(to, str):
        try:
            return torch.device(to)
        except RuntimeError:
            return Path(to)
    return Path(to)


@dataclass(frozen=True)
class Asked:
    """What a run was asked for: its prompts, which one each image follows, and its embeddings."""

    prompts: tuple[prompts.Prompt, ...]
    rows: tuple[int, ...]
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None


class PipelineSource:
    """Knows a pipeline's runs: prompts by its ``encode_prompt``, steps by its scheduler."""

    def __init__(self, pipe: Any, options: Options) -> None:
        denoiser = getattr(pipe, "unet", None)
        if denoiser is None or not hasattr(pipe, "encode_prompt"):
            raise TypeError(
                f"{type(pipe).__name__} has no UNet with a text encoder; xattn records Stable "
                "Diffusion and SDXL pipelines (or pass the UNet, tokenizer= and prompt=)"
            )
        self.pipe = pipe
        self.options = options
        self.denoiser: nn.Module = denoiser
        self.asked: Asked | None = None
        self.on_prompt: Callable[[], None] = lambda: None
        self.pictures: list[Any] | None = None

    @property
    def model_name(self) -> str:
        """The hub id or folder that the pipeline came from."""
        return str(getattr(self.pipe.config, "_name_or_path", "") or type(self.pipe).__name__)

    def components(self) -> dict[str, nn.Module]:
        """Gives the models that attend to text, by the prefix of their layers' names."""
        found = {"": self.denoiser}
        nets = getattr(self.pipe, "controlnet", None)
        if nets is not None:
            several = getattr(nets, "nets", None)
            for i, net in enumerate(several if several is not None else [nets]):
                found["controlnet." if several is None else f"controlnet.{i}."] = net
        return found

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listens to the pipeline's ``encode_prompt``, where a run begins."""
        pipe, encode = self.pipe, self.pipe.encode_prompt

        @functools.wraps(encode)  # whoever wraps us in turn still sees the parameters
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            self.on_prompt()
            result = encode(*args, **kwargs)
            self.asked = self._asked(hooks.encoded(encode, args, kwargs, result))
            return result

        with ExitStack() as stack:
            stack.enter_context(hooks.replaced(pipe, "encode_prompt", encode_prompt))
            processor = getattr(pipe, "image_processor", None)
            if processor is not None:
                keep = self._keeping_pictures(processor.postprocess)
                stack.enter_context(hooks.replaced(processor, "postprocess", keep))
            yield

    def _keeping_pictures(self, postprocess: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            images = postprocess(*args, **kwargs)
            if self.pictures is not None and isinstance(images, list):
                self.pictures[:] = images
            return images

        return wrapped

    def _asked(self, call: hooks.Encoded) -> Asked:
        given = call.arguments
        texts = _texts(given.get("prompt")) or list(self.options.prompt or ())
        images = call.rows
        second = _texts(given.get("prompt_2"))
        if second and second != texts:
            texts = []  # two texts on one axis: words would be ambiguous
        found = self._tokenized(texts, call.prompt_embeds.shape[1], images)
        per_prompt = images // len(found)
        asked = [i // per_prompt for i in range(images)]
        if self.options.negative and call.negative_embeds is not None:
            negatives = _texts(given.get("negative_prompt")) or [""]
            more = self._tokenized(negatives, call.prompt_embeds.shape[1], images)
            asked += [len(found) + i * len(more) // images for i in range(images)]
            found += more
        return Asked(tuple(found), tuple(asked), call.prompt_embeds, call.negative_embeds)

    def _tokenized(self, texts: list[str], length: int, images: int) -> list[prompts.Prompt]:
        if not texts:
            return [prompts.Prompt.anonymous(length)]
        if images % len(texts):
            raise ValueError(
                f"{images} embeddings were passed and {len(texts)} prompts: give one each"
            )
        tokenizers = [
            t
            for t in (
                getattr(self.pipe, "tokenizer", None),
                getattr(self.pipe, "tokenizer_2", None),
            )
            if t is not None
        ]
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        return [prompts.tokenize_all(tokenizers, text, convert=convert) for text in texts]

    def schedule(self, timestep: float) -> hooks.Schedule | None:
        """Gives the schedule of the run whose first denoiser call is about to be made."""
        calls = getattr(self.pipe, "_num_timesteps", None)
        return hooks.schedule_of(self.pipe.scheduler, calls, timestep)

    def facts(self) -> dict[str, Any]:
        """Gives what is worth knowing about a run, as plain JSON values."""
        guidance = getattr(self.pipe, "_guidance_scale", None)
        return {
            "pipeline": type(self.pipe).__name__,
            "model": self.model_name,
            "scheduler": type(self.pipe.scheduler).__name__,
            "guidance_scale": None if guidance is None else float(guidance),
        }


class LoopSource:
    """Knows the runs of somebody's own sampling loop, as far as they say."""

    def __init__(self, unet: nn.Module, options: Options, tokenizer: Any, scheduler: Any) -> None:
        self.denoiser = unet
        self.options = options
        self.scheduler = scheduler
        tokenizers = tokenizer if isinstance(tokenizer, list | tuple) else [tokenizer]
        texts = options.prompt or ()
        found = tuple(prompts.tokenize_all(tokenizers, text) for text in texts)
        self.asked: Asked | None = Asked(found, tuple(range(len(found))))
        self.on_prompt: Callable[[], None] = lambda: None
        self.pictures: list[Any] | None = None

    def components(self) -> dict[str, nn.Module]:
        """Gives the UNet alone."""
        return {"": self.denoiser}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Has nothing to listen to."""
        yield

    def schedule(self, timestep: float) -> hooks.Schedule | None:
        """Gives the scheduler's steps, or None where no scheduler was passed."""
        if self.scheduler is None:
            return None
        return hooks.schedule_of(self.scheduler, None, timestep)

    def facts(self) -> dict[str, Any]:
        """Gives what is worth knowing about a run, as plain JSON values."""
        return {
            "pipeline": "own loop",
            "model": type(self.denoiser).__name__,
            "scheduler": type(self.scheduler).__name__ if self.scheduler is not None else None,
            "guidance_scale": None,
        }


Source = PipelineSource | LoopSource


def _texts(given: Any) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


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
        self.owner.check()
        self.end_run()

    # -- the clock -----------------------------------------------------------------------------

    def _before(self, prefix: str) -> hooks.Before:
        return lambda arguments: self.before_call(prefix, arguments)

    def _after(self, prefix: str) -> hooks.After:
        return lambda: self.after_call(prefix)

    def before_call(self, prefix: str, arguments: dict[str, Any]) -> None:
        """Gets ready for a denoiser call: at a run's first, knows all of its axes and bytes."""
        sleeping = self.source.asked is None
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
        tokens = _index(positions, sample.device)
        for tap, (i, share) in zip(self.taps, members, strict=True):
            tap.recording.tokens = tokens
            tap.recording.buffer = self.tape.views[i]
            tap.recording.share = share
            tap.recording.seen = False
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
        self.trace.runs.append(self.run)
        self.owner.claim()

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
                found.update(prompt.positions(word))
            except ValueError as error:
                errors.append(error)
        if len(errors) == len(asked):
            raise errors[0]
    return tuple(sorted(found))


def _index(positions: Sequence[int], device: torch.device) -> slice | Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return slice(first, last + 1)
    return torch.tensor(positions, device=device)


def _timestep(arguments: dict[str, Any]) -> float:
    return float(torch.as_tensor(arguments["timestep"]).flatten()[0])


def _wraps(processor: Any, recording: Recording) -> bool:
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
