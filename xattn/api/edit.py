"""``edit(pipe, ...)``: a source and its edited siblings, from the same noise, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from xattn.api.arguments import Batch, pictures_of, refuse_unknown
from xattn.api.editing import Session, TraceOptions, session_of
from xattn.api.photographs import edit_photo, has_picture, inverted, photographed
from xattn.edits.kinds import Edits, Reweight
from xattn.instruments.keeper import OF_ONE_CALL, Fingerprint, KeptSource
from xattn.inversion.inversion import Inversion
from xattn.models import family_of_pipeline
from xattn.results.edit import EditResult
from xattn.session import patching
from xattn.session.generators import Given


def edit(
    pipe: Any,
    prompt: str,
    *edits: Edits,
    generator: Given = None,
    side: int | None = None,
    layers: str | Sequence[str] | None = None,
    trace: TraceOptions | None = None,
    keep_source: bool = False,
    source: EditResult | Inversion | None = None,
    image: Any = None,
    method: str | None = None,
    start: float | None = None,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> EditResult:
    """Draw a prompt and edited siblings of it, from the same noise (Hertz et al. 2022).

    The source's image equals the one from ``pipe(prompt, generator=generator, ...)``; the siblings
    share its noise, and its attention as far as their edits say. Everything runs as one batch.

    Several seeds: pass a list of generators, or ``num_images_per_prompt`` with one generator,
    whose draws are then divided among the images as in a plain run. Generators end in the state
    a plain run would leave.

    Args:
        pipe: a Stable Diffusion (1, 2, XL, 3) or FLUX.1 pipeline: text to image, img2img, inpaint.
        prompt: the source's prompt.
        *edits: one per sibling: ``Replace``, ``Refine``, ``Reweight``; a list, with or without
            ``LocalBlend``, composes into one edit. An empty list is a plain sibling. With
            ``keep_source=True`` edits may be left out: then only the source is drawn.
        generator: one, or one per seed; torch's own by default.
        side: self-attention follows the source in layers of at most side x side queries; by
            default 16, or a quarter of the latents' height and width if larger; in joint
            attention the image's queries and keys follow in every layer by default.
        layers: names or globs of the layers to edit, such as those of ``vital``; all by default.
        trace: whether to record the attention of each image (the default, unless ``source=`` is
            given), or ``record``'s options for it: ``keep``, ``words``, ``layers``, ``dtype``,
            ``to``.
        keep_source: keep what later edits need of the source, on the run's device;
            ``KeptSource`` states the memory.
        source: a result of ``keep_source=True`` for the same prompt, model and scheduler: its
            source is not sampled again, which halves the work of a single edit. Seed and options
            are those of that run, except ``callback_on_step_end``, and nothing is recorded:
            ``result.trace`` is None. The result can itself be a ``source=``. Or an ``Inversion``,
            or the result of editing a photograph: its inversion is used again, with any options.
        image: a photograph to edit, a PIL image or a path, for text-to-image pipelines; the prompt
            says what it shows. It is inverted first, as by ``invert``. Pipelines that have an
            ``image`` of their own (img2img, inpaint, FLUX.1 Kontext, Qwen-Image-Edit, JoyImage
            Edit) get it as theirs: nothing is inverted, and the edits are of the prompt, which
            there says what to do. A ControlNet's is ``control_image`` here.
        method: how to invert it, as for ``invert``; "direct" by default.
        start: share of the run before which edited images are held to the photograph's pivots;
            0 by default, 0.36 with "edit-friendly".
        labels: one name per sibling; by default a description of its edit.
        **options: the pipeline's own; others are refused. A negative prompt, an image, a mask
            image apply to all rows; ``latents`` are those of the source.

    Raises:
        TypeError: the pipeline has no text attention xattn can edit.
        ValueError: before any sampling: a word is not in the prompt, an edit does not fit, a mask
            has the wrong shape, ``source=`` belongs to another model.
        MemoryError: before the first step: what would be kept does not fit.

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
        raise TypeError("edit needs a pipeline; for a UNet in a custom loop use editing")
    if source is not None and not isinstance(source, EditResult | Inversion):
        raise TypeError(
            f"source must be a result of edit or an inversion, not {type(source).__name__}; a "
            "photograph is image=, an inversion's file is read by xattn.load_inversion"
        )
    if image is not None and has_picture(pipe, options):
        options["image"], image = image, None
    reach = {"side": side, "layers": layers}
    if image is not None or isinstance(source, Inversion) or _is_photo(source):
        if keep_source:
            raise ValueError("keep_source=True: a photograph's result can be a source= as it is")
        names, given = _labels(edits, labels), _inversion_of(source, image, method)
        inversion = given or inverted(pipe, prompt, edits, image, method, generator, options)
        how: dict[str, Any] = {"reach": reach, "trace": trace, "generator": generator}
        how |= {"start": start, "options": options}
        return _edit_inverted(pipe, prompt, edits, inversion, names, **how)
    assert not isinstance(source, Inversion)
    for name, value in (("method", method), ("start", start)):
        if value is not None:
            raise ValueError(f"{name}={value!r} is for photographs: pass image= or an inversion")
    if keep_source or source is not None:
        _refuse_compiled(pipe)
    if source is not None:
        if trace is not None and trace is not False:
            raise ValueError(f"trace={trace!r}: nothing is recorded with source=; leave it out")
        return _edit_kept(pipe, prompt, edits, source, generator, reach, options, labels)
    how = {**reach, "trace": True if trace is None else trace, "keep_source": keep_source}
    return _edit_drawn(pipe, prompt, edits, generator, how, options, labels)


def _inversion_of(
    source: EditResult | Inversion | None, image: Any, method: str | None
) -> Inversion | None:
    """Return the inversion that a source is or was made by; None where an image is given."""
    if image is not None and source is not None:
        raise ValueError("image= and source= are two photographs; pass one of them")
    found = source.inversion if isinstance(source, EditResult) else source
    if found is not None and method not in (None, found.method):
        raise ValueError(f"method={method!r}: source was inverted by {found.method!r}")
    return found


def _edit_inverted(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    inversion: Inversion,
    labels: Sequence[str],
    **how: Any,
) -> EditResult:
    """Draw the siblings of a photograph."""
    session, output, batch = edit_photo(pipe, prompt, edits, inversion, **how)
    images = _by_prompt(output.images, batch.images)
    return photographed(_result(session, images[0], images[1:], labels, None), inversion)


def _edit_drawn(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    generator: Given,
    how: dict[str, Any],
    options: dict[str, Any],
    labels: Sequence[str] | None,
) -> EditResult:
    """Draw a source and its siblings, and keep what later edits need of it, if asked."""
    refuse_unknown(pipe, options)
    kept = None
    if how.pop("keep_source"):
        drawn = {name: value for name, value in options.items() if name not in OF_ONE_CALL}
        kept = KeptSource(prompt, 1, drawn, Fingerprint.of(pipe))
    with session_of(pipe, prompt, edits, **how, kept=kept) as session:
        rows = Batch.of(pipe, session.prompts, generator, options)
        if kept is not None:
            kept.images, kept.generators = rows.images, rows.generators.twins()
        output = pipe(**rows.arguments(pipe, session, options))
        rows.generators.leave()
    images = _by_prompt(pictures_of(output), rows.images)
    if kept is not None:
        kept.pictures = images[0]
    return _result(session, images[0], images[1:], _labels(edits, labels), kept)


def _is_photo(source: Any) -> bool:
    return isinstance(source, EditResult) and source.inversion is not None


def _refuse_compiled(pipe: Any) -> None:
    if any(map(patching.is_compiled, family_of_pipeline(pipe).denoisers(pipe))):
        raise ValueError(
            "keep_source= and source= cannot be used with a compiled denoiser: each of its calls "
            "would compile its own graph; use it without torch.compile"
        )


def _edit_kept(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    source: EditResult,
    generator: Given,
    how: dict[str, Any],
    options: dict[str, Any],
    labels: Sequence[str] | None,
) -> EditResult:
    """Draw the siblings of a kept source."""
    kept = source.kept
    if kept is None:
        raise ValueError("source kept nothing: make it with edit(..., keep_source=True)")
    if prompt != kept.prompt:
        raise ValueError(f"source belongs to the prompt {kept.prompt!r}, not to {prompt!r}")
    drawn = [name for name in options if name not in OF_ONE_CALL]
    if generator is not None or drawn:
        names = ", ".join([*(["generator"] if generator is not None else []), *drawn])
        raise ValueError(f"{names}: the seed and options of source's run apply; leave them out")
    if kept.made_by is not None:
        kept.made_by.check(pipe)
    how = {**how, "trace": False, "kept": kept, "reads": True}
    with session_of(pipe, prompt, edits, **how) as session:
        generators = kept.generators
        given = generators[0] if len(generators) == 1 else generators
        wanted = {**kept.options, **options, "num_images_per_prompt": kept.images}
        rows = Batch.of(pipe, session.prompts, given, wanted)
        output = pipe(**rows.arguments(pipe, session, wanted))
    images = _by_prompt(pictures_of(output), rows.images)
    return _result(session, kept.pictures, images, _labels(edits, labels), kept)


def sweep(
    pipe: Any, prompt: str, word: str, weights: Sequence[float], **options: Any
) -> EditResult:
    """Draw a prompt with one of its words weaker and stronger; ``.strip()`` shows the result.

    Args:
        pipe: as for ``edit``.
        prompt: the prompt.
        word: the word or phrase whose weight changes.
        weights: one sibling each; 1 is the source itself, 0 removes, negative pushes away.
        **options: as for ``edit``; ``cross_steps`` and ``self_steps`` as for ``Reweight``.

    Raises:
        ValueError: weights is empty, or the word is not in the prompt.

    Example:
        >>> pipe, prompt = xattn.demo(), "a red car on a green lawn"
        >>> xattn.sweep(pipe, prompt, "red", weights=[-1, 0, 1, 2, 4]).strip().save("sweep.png")
    """
    if not len(weights):
        raise ValueError("weights is empty: pass some, such as [-1, 0, 1, 2, 4]")
    timing = {name: options.pop(name) for name in ("cross_steps", "self_steps") if name in options}
    edits = [Reweight({word: weight}, **timing) for weight in weights]
    labels = [f"{word} x {weight:g}" for weight in weights]
    return edit(pipe, prompt, *edits, labels=labels, **options)


def _by_prompt(images: Any, each: int) -> list[list[Any]]:
    """Return the images of each prompt."""
    return [[images[i + k] for k in range(each)] for i in range(0, len(images), each)]


def _result(
    session: Session,
    sources: list[Any],
    siblings: list[list[Any]],
    labels: Sequence[str],
    kept: KeptSource | None,
) -> EditResult:
    masks = session.masks
    first, *others = [
        EditResult(
            source=one,
            images=tuple(images[i] for images in siblings),
            prompts=tuple(session.plan.texts),
            plan=session.plan,
            masks=tuple(None if mask is None else mask[:, i] for mask in masks),
            trace=session.trace,
            labels=tuple(labels),
            seed=i,
            of=len(sources),
            kept=kept,
        )
        for i, one in enumerate(sources)
    ]
    return replace(first, others=tuple(others))


def _labels(edits: Sequence[Edits], given: Sequence[str] | None) -> Sequence[str]:
    if given is not None and len(given) != len(edits):
        raise ValueError(f"{len(given)} labels for {len(edits)} edits: pass one each")
    return [_label(each) for each in edits] if given is None else list(given)


def _label(edits: Edits) -> str:
    parts = edits if isinstance(edits, Sequence) else [edits]
    return ", ".join(map(str, parts)) or "plain"
