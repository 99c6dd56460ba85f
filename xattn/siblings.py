"""``edit(pipe, ...)``: a source and its edited siblings, from the same noise, in one batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from xattn import prompts, views
from xattn.editor import Editor
from xattn.edits import Edits, Reweight
from xattn.options import Options, place
from xattn.plan import EditPlan, make_plan
from xattn.sources import Asked, LoopSource, PipelineSource
from xattn.streams import Given, streams
from xattn.trace import Trace

TraceOptions = bool | Mapping[str, Any]


class Session:
    """What ``editing`` gives: the prompts to sample, and LocalBlend's step between steps.

    Attributes:
        plan: which token takes from which.
        prompts: the source's prompt and each sibling's: the rows of the batch, in this order.
        trace: what every row attends to in effect; None where it isn't recorded.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self.plan: EditPlan = editor.edits
        self.prompts: list[str] = editor.edits.texts
        self.trace: Trace | None = editor.trace if editor.records else None

    def blend(self, latents: Tensor) -> Tensor:
        """Gives the latents after a step of the scheduler, LocalBlends applied.

        To be called after each of the scheduler's steps; without a LocalBlend it gives back what
        it was given.

        Args:
            latents: (prompts x images, channels, height, width), prompt-major.
        """
        return self._editor.blend(latents)

    @property
    def masks(self) -> list[Tensor | None]:
        """For each edit where LocalBlend let it through, (steps, images, height, width).

        All of it in the steps before LocalBlend starts; None for an edit without LocalBlend.
        """
        found: list[Tensor | None] = []
        for sibling, masks in zip(self.plan.siblings, self._editor.masks, strict=True):
            some = next((m for m in masks if m is not None), None)
            if sibling.blend is None or some is None:
                found.append(None)
            else:
                whole = [torch.ones_like(some) if m is None else m for m in masks]
                found.append(torch.stack(whole))
        return found

    def callback(
        self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Is ``callback_on_step_end`` for a pipeline that is called inside ``editing``."""
        return {**tensors, "latents": self.blend(tensors["latents"])}


@contextmanager
def editing(
    pipe: Any,
    prompt: str,
    *edits: Edits,
    tokenizer: Any = None,
    scheduler: Any = None,
    images: int = 1,
    rows: slice | None = None,
    side: int | None = None,
    scale: int | None = None,
    trace: TraceOptions = True,
) -> Iterator[Session]:
    """Edits while the block runs: for pipeline calls, or a sampling loop, of your own.

    Inside the block a batch of ``session.prompts`` is edited; start all of its rows from the same
    noise. On leaving the denoiser is as it was found.

    Args:
        pipe: a pipeline; or, for your own loop, its UNet.
        prompt: the source's prompt.
        *edits: one for each sibling; a list composes into one.
        tokenizer: for your own loop: the tokenizer, or both of SDXL's.
        scheduler: for your own loop, after ``set_timesteps``: edits are timed by its steps.
        images: for your own loop, images of each prompt; the batch is prompt-major.
        rows: for your own loop, which rows of the UNet's batch follow the prompts. By default
            all of them where there are as many as prompts x images, else the second half.
        side: self-attention follows the source in layers of at most side x side queries; by
            default 16, or a quarter of the latents' height and width where that is more.
        scale: for masks in pixels, pixels for each latent; the VAE's, or 8.
        trace: whether to record what each row attends to in effect, or ``record``'s options for
            it: ``keep``, ``words``, ``layers``, ``dtype``, ``to``.

    Yields:
        A ``Session``.

    Raises:
        TypeError: the pipeline has no text cross-attention that can be seen.
        ValueError: an edit doesn't fit the prompt, or an option makes no sense.

    Example:
        >>> with xattn.editing(
        ...     unet, "a red car", xattn.Replace("red", "blue"),
        ...     tokenizer=tokenizer, scheduler=scheduler,
        ... ) as session:
        ...     states = encode(session.prompts)
        ...     latents = noise.repeat(len(session.prompts), 1, 1, 1)
        ...     for t in scheduler.timesteps:
        ...         predicted = unet(scheduler.scale_model_input(latents, t), t, states).sample
        ...         latents = session.blend(scheduler.step(predicted, t, latents).prev_sample)
    """
    options = _options(trace, rows)
    if isinstance(pipe, nn.Module):
        if tokenizer is None or scheduler is None:
            raise ValueError("editing a UNet needs tokenizer= and scheduler=")
        tokenizers = list(tokenizer) if isinstance(tokenizer, list | tuple) else [tokenizer]
        plan = make_plan(*_tokenized(prompt, edits, tokenizers, None))
        source: PipelineSource | LoopSource = LoopSource(pipe, options, tokenizers, scheduler)
        each = range(len(plan.prompts))
        source.asked = Asked(plan.prompts, tuple(j for j in each for _ in range(images)))
    else:
        source = PipelineSource(pipe, options)
        named = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
        tokenizers = [t for t in named if t is not None]
        convert = getattr(pipe, "maybe_convert_prompt", None)
        plan = make_plan(*_tokenized(prompt, edits, tokenizers, convert))
    editor = Editor(
        source,
        options,
        plan,
        records=trace is not False,
        side=side,
        scale=scale or int(getattr(pipe, "vae_scale_factor", 8)),
    )
    with editor.installed():
        yield Session(editor)


@dataclass(repr=False)
class EditResult:
    """A source image and its edited siblings.

    With several seeds it speaks of the first; ``result.seeds`` has a result for each.

    Attributes:
        source: the source's image.
        images: the siblings' images, one for each edit.
        prompts: the source's prompt, and each sibling's.
        plan: ``print(result.plan)`` shows which token takes from which, and when.
        masks: for each edit where LocalBlend let it through, (steps, height, width) of the
            latents, all of it before its start; None for an edit without LocalBlend.
        trace: what each image attends to in effect, the source's as image 0 and the siblings' as
            1, 2 ... (with several seeds ``index x seeds + seed``); None where ``trace=False``.
        labels: a name for each sibling.
        seeds: a result for each seed; the first is this one.
    """

    source: Any
    images: list[Any]
    prompts: list[str]
    plan: EditPlan
    masks: list[Tensor | None]
    trace: Trace | None
    labels: list[str] = field(default_factory=list)
    seeds: list[EditResult] = field(default_factory=list)

    def strip(self, side: int = 256) -> Image.Image:
        """Draws the source and its siblings in a row, a row for each seed."""
        results = self.seeds or [self]
        cells = [[one.source, *one.images] for one in results]
        return views.table(cells, columns=["source", *self.labels], side=side)

    def __repr__(self) -> str:
        seeds = f", {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"EditResult({self.prompts[0]!r}: {', '.join(self.labels)}{seeds})"

    def _repr_png_(self) -> bytes | None:
        import io

        if not isinstance(self.source, Image.Image):
            return None
        data = io.BytesIO()
        self.strip().save(data, "PNG")
        return data.getvalue()


def edit(
    pipe: Any,
    prompt: str,
    *edits: Edits,
    generator: Given = None,
    side: int | None = None,
    trace: TraceOptions = True,
    **options: Any,
) -> EditResult:
    """Draws a prompt and edited siblings of it, from the same noise (Hertz et al. 2022).

    The source's image is what ``pipe(prompt, generator=generator, ...)`` draws; the siblings
    share its noise, and its attention as far as their edits say. Everything runs as one batch.

    Several seeds: a list of generators, or ``num_images_per_prompt`` with one generator, whose
    draws are then divided among the images as in a plain run. Afterwards the generators stand
    where a plain run would leave them.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline: text to image, img2img, inpaint.
        prompt: the source's prompt.
        *edits: one for each sibling: ``Replace``, ``Refine``, ``Reweight``; a list, with or
            without ``LocalBlend``, composes into one edit. An empty list is a plain sibling.
        generator: one, or one for each seed; torch's own by default.
        side: self-attention follows the source in layers of at most side x side queries; by
            default 16, or a quarter of the latents' height and width where that is more.
        trace: whether to record what each image attends to, or ``record``'s options for it:
            ``keep``, ``words``, ``layers``, ``dtype``, ``to``.
        **options: the pipeline's own. A negative prompt, an image, a mask image go to all rows;
            ``latents`` are those of the source.

    Raises:
        TypeError: the pipeline has no text cross-attention that can be seen.
        ValueError: before any sampling: a word isn't in the prompt, an edit doesn't fit, a mask
            has the wrong shape.

    Example:
        >>> result = xattn.edit(
        ...     xattn.demo(), "a red car on a green lawn",
        ...     xattn.Replace("red", "blue"),
        ...     [xattn.Replace("car", "boat"), xattn.LocalBlend("car")],
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> result.strip().save("edits.png")
        >>> print(result.plan)
    """
    if isinstance(pipe, nn.Module):
        raise TypeError("edit takes a pipeline; for a UNet and your own loop there is editing")
    with editing(pipe, prompt, *edits, side=side, trace=trace) as session:
        rows = Batch.of(pipe, session.prompts, generator, options)
        output = pipe(**rows.arguments(pipe, session, options))
        rows.generators.leave()
    return _result(session, output.images, rows.images, [_label(e) for e in edits])


def sweep(
    pipe: Any, prompt: str, word: str, weights: Sequence[float], **options: Any
) -> EditResult:
    """Draws a prompt with one of its words weaker and stronger; ``.strip()`` is the picture.

    Args:
        pipe: as for ``edit``.
        prompt: the prompt.
        word: the word or phrase whose weight changes.
        weights: a sibling for each; 1 is the source itself, 0 removes, negative pushes away.
        **options: as for ``edit``; ``cross_steps`` and ``self_steps`` as for ``Reweight``.

    Raises:
        ValueError: there are no weights, or the word isn't in the prompt.

    Example:
        >>> pipe, prompt = xattn.demo(), "a red car on a green lawn"
        >>> xattn.sweep(pipe, prompt, "red", weights=[-1, 0, 1, 2, 4]).strip().save("sweep.png")
    """
    if not len(weights):
        raise ValueError("weights has none: give some, such as [-1, 0, 1, 2, 4]")
    timing = {name: options.pop(name) for name in ("cross_steps", "self_steps") if name in options}
    edits = [Reweight({word: weight}, **timing) for weight in weights]
    result = edit(pipe, prompt, *edits, **options)
    for one in (result, *result.seeds):
        one.labels = [f"{word} x {weight:g}" for weight in weights]
    return result


@dataclass(frozen=True)
class Batch:
    """How a pipeline's own arguments become those of a batch of siblings."""

    prompts: list[str]
    images: int
    generators: Any

    @classmethod
    def of(cls, pipe: Any, texts: list[str], generator: Given, options: Mapping[str, Any]) -> Batch:
        """Gives the batch of some prompts, after checking the pipeline's arguments."""
        for name in ("prompt", "prompt_embeds", "pooled_prompt_embeds", "prompt_2"):
            if options.get(name) is not None:
                raise ValueError(f"{name}= can't be edited: edits need the prompt as one text")
        several = generator is not None and not isinstance(generator, torch.Generator)
        given = len(generator) if several else None  # type: ignore[arg-type]
        images = options.get("num_images_per_prompt") or given or 1
        if given not in (None, images):
            raise ValueError(
                f"generator has {given} generators for num_images_per_prompt={images}: give one "
                "for each image"
            )
        device = torch.device(pipe._execution_device)
        return cls(texts, images, streams(generator, images, len(texts), device))

    @property
    def rows(self) -> int:
        """How many images are drawn."""
        return len(self.prompts) * self.images

    def arguments(self, pipe: Any, session: Session, options: Mapping[str, Any]) -> dict[str, Any]:
        """Gives what the pipeline is called with."""
        known = inspect.signature(pipe.__call__).parameters
        arguments = dict(options)
        arguments.update(
            prompt=self.prompts,
            num_images_per_prompt=self.images,
            generator=self.generators,
            return_dict=True,
        )
        for name in ("negative_prompt", "negative_prompt_2"):
            if options.get(name) is not None:
                arguments[name] = self._negative(name, options[name])
        if options.get("latents") is not None:
            arguments["latents"] = self._latents(options["latents"])
        # text-to-image ControlNets repeat their image themselves
        for name in ("image", "mask_image") if "strength" in known else ():
            if options.get(name) is not None:
                arguments[name] = self._repeated(options[name])
        if any(sibling.blend is not None for sibling in session.plan.siblings):
            if "callback_on_step_end" not in known:
                raise ValueError(
                    f"{type(pipe).__name__} has no callback_on_step_end, which LocalBlend needs"
                )
            arguments.update(_composed(session, options))
        return arguments

    def _negative(self, name: str, given: Any) -> Any:
        texts = [given] if isinstance(given, str) else list(given)
        if len(texts) != 1:
            raise ValueError(f"{name} has {len(texts)} texts; give one, for all of the images")
        return texts * len(self.prompts)

    def _latents(self, given: Tensor) -> Tensor:
        if len(given) not in (1, self.images):
            raise ValueError(
                f"latents has {len(given)} rows; give one, or one for each of the {self.images} "
                "images of the source"
            )
        return given.repeat(self.rows // len(given), 1, 1, 1)

    def _repeated(self, given: Any) -> Any:
        """Gives an image for every row: only then does each row's generator draw for it."""
        if isinstance(given, Tensor):
            single = given[None] if given.ndim == 3 else given
            return single.repeat(self.rows // len(single), *[1] * (single.ndim - 1))
        if isinstance(given, list | tuple):
            return list(given) * (self.rows // len(given))
        return [given] * self.rows


def _composed(session: Session, options: Mapping[str, Any]) -> dict[str, Any]:
    """Gives LocalBlend's callback, with the user's own after it."""
    own: Callable[..., dict[str, Any] | None] | None = options.get("callback_on_step_end")
    names = list(options.get("callback_on_step_end_tensor_inputs") or ["latents"])
    names = list(getattr(own, "tensor_inputs", None) or names)

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        blended = session.callback(pipe, index, timestep, tensors)
        if own is None:
            return blended
        wanted = {name: blended[name] for name in names}
        return {"latents": blended["latents"], **(own(pipe, index, timestep, wanted) or {})}

    return {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": list(dict.fromkeys(["latents", *names])),
    }


def _result(session: Session, images: Any, each: int, labels: list[str]) -> EditResult:
    masks = session.masks

    def of_seed(i: int) -> EditResult:
        return EditResult(
            source=images[i],
            images=[images[j * each + i] for j in range(1, len(session.prompts))],
            prompts=list(session.prompts),
            plan=session.plan,
            masks=[None if mask is None else mask[:, i] for mask in masks],
            trace=session.trace,
            labels=list(labels),
        )

    results = [of_seed(i) for i in range(each)]
    results[0].seeds = results
    return results[0]


def _label(edits: Edits) -> str:
    parts = edits if isinstance(edits, Sequence) else [edits]
    return ", ".join(map(str, parts)) or "plain"


def _options(trace: TraceOptions, rows: slice | None) -> Options:
    given = dict(trace) if isinstance(trace, Mapping) else {}
    unknown = set(given) - {"keep", "words", "layers", "dtype", "to"}
    if unknown:
        raise ValueError(
            f"trace={trace!r}: {sorted(unknown)[0]!r} is none of keep, words, layers, dtype, to"
        )
    for name in ("keep", "words", "layers"):
        value = given.get(name)
        if value is not None:
            given[name] = (value,) if isinstance(value, str | int) else tuple(value)
    if "keep" in given:
        given["keep"] = frozenset(given["keep"])
    if "to" in given:
        given["to"] = place(given["to"])
    return Options(rows=rows, **given)


def _tokenized(
    prompt: str, edits: Sequence[Edits], tokenizers: Sequence[Any], convert: Any
) -> tuple[prompts.Prompt, Sequence[Edits], Callable[[str], prompts.Prompt]]:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt must be one text with words in it, got {prompt!r}")

    def tokenize(text: str) -> prompts.Prompt:
        return prompts.tokenize_all(tokenizers, text, convert=convert)

    return tokenize(prompt), edits, tokenize
