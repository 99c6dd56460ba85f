"""``attribute(pipe, trace)``: what each word of a prompt causes in its picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xattn.api.invert import encoded
from xattn.api.record import instruments_of
from xattn.attribution.asking import Asking
from xattn.attribution.cost import Cost
from xattn.attribution.inputs import inputs_of
from xattn.attribution.method import Method
from xattn.attribution.methods import method_of
from xattn.attribution.of_inputs import of_inputs
from xattn.attribution.outcome import outcome
from xattn.attribution.players import Player, players_of
from xattn.attribution.states import States
from xattn.attribution.store import EstimateStore
from xattn.attribution.targets import target_of
from xattn.attribution.texts import ABSENT, Texts
from xattn.instruments.samples import Samples
from xattn.models import family_of_pipeline
from xattn.models.probing import Probed, probed_family
from xattn.records.options import Options
from xattn.results.attribution import Attribution
from xattn.results.trace import Trace
from xattn.session.axis import reader
from xattn.session.pipeline import PipelineOrigin
from xattn.session.session import opened


def attribution_cost(
    pipe: Any,
    prompt: Trace | str,
    *,
    of: str | Sequence[str] = "words",
    how: Any = "occlusion",
    levels: float | Sequence[float] | None = None,
    noises: int = 1,
    **options: Any,
) -> Cost:
    """Return what an attribution takes at most, before it is made: rows of the denoiser.

    Of inputs it is how often the picture is drawn.

    Args:
        pipe: the pipeline.
        prompt: the text, or a trace of it.
        of: as for ``attribute``.
        how: as for ``attribute``.
        levels: as for ``attribute``.
        noises: as for ``attribute``.
        **options: of the pipeline's call, of which ``of="inputs"`` tells the inputs.

    Raises:
        ValueError: the method is unknown, or a phrase is not in the prompt.

    Example:
        >>> print(xattn.attribution_cost(xattn.demo(), "a red car", how="shapley"))
        shapley of 3 words at 2 noised pictures: 16 denoiser rows
    """
    method = method_of(how)
    prompt = prompt if isinstance(prompt, str) else prompt.run.prompt(0).text
    if of == "inputs":
        count = len(inputs_of(pipe, prompt, options))
        return Cost(method.name, count, 0, method.rows(count))
    words = len(players_of(reader(family_of_pipeline(pipe).axes(pipe))(prompt), of))
    states = len(_levels(levels, method)) * noises
    return Cost(method.name, words, states, states * method.rows(words))


def attribute(
    pipe: Any,
    what: Trace | str,
    *,
    of: str | Sequence[str] = "words",
    how: Any = "occlusion",
    target: Any = "image",
    image: int = 0,
    absent: str = "removed",
    levels: float | Sequence[float] | None = None,
    noises: int = 1,
    seed: int = 0,
    batch: int = 16,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Attribution:
    """Measure what each word of a prompt causes in its picture, by taking words away.

    At some levels of the noise schedule the denoiser is asked, without guidance, what it takes
    the clean picture to be, with words and without: a drawn prompt's at the run's own latents, a
    trace's at its picture noised to the level. Attention tells where a word's value is read; this
    tells what it does. A progress bar counts the rows of the denoiser, and ``attribution_cost``
    tells them before.

    Args:
        pipe: a pipeline of Stable Diffusion 1, 2, XL, 3, or FLUX.1.
        what: a trace, of ``record`` or of ``probe``, whose picture is explained; or a prompt,
            which is drawn and recorded first.
        of: "words", or phrases of the prompt, each of which is one thing that can be absent; or
            "inputs": the prompt, a negative prompt, a control map, an initial image, an image
            prompt, a LoRA, the seed, whichever the call has. The picture is then really drawn
            without them, by "occlusion", "shapley" or "surrogate".
        how: "occlusion" (without each word), "shapley" (the mean over all orders of words),
            "information" (nats; Kong et al. 2024), "surrogate" (a local linear model; LIME),
            "gradient" (integrated gradients), or a method with settings of your own, such as
            ``xattn.attribution.shapley.Shapley(orders=64)``.
        target: what is explained: "image" for the squared change of the clean estimate; a mask
            (height, width) of a region for the change there; another text, "car", for the presence
            of this concept, by how it helps the denoiser (six rows more for each estimate); or a
            function from pictures, (rows, 3, height, width) in [0, 1], to a number each, such as
            a classifier's.
        image: index of the trace's image.
        absent: what takes the place of an absent word: "removed" encodes the text without it,
            "padding" puts the empty prompt's embedding at its positions, "mean" the words' mean.
        levels: shares of the noise schedule in (0, 1); the method's own by default.
        noises: how many noises to average at each level; with more than one a drawn prompt's
            picture is noised, too.
        seed: of the noise.
        batch: rows of one denoiser call.
        cache: a folder that keeps every answer, of whichever method, so that an attribution that
            was interrupted goes on where it was.
        **options: of the pipeline's call, where a prompt is drawn: ``generator``, steps ...

    Raises:
        TypeError: the model's family can't be asked at a level.
        ValueError: an option is out of its range, the trace has no picture, or a phrase is not in
            the prompt.

    Example:
        >>> why = xattn.attribute(xattn.demo(), "a red car on a green lawn")
        >>> why.bar().save("words.png")
        >>> print(why.table())
    """
    if of == "inputs":
        return of_inputs(pipe, what, how=how, target=target, seed=seed, cache=cache, **options)
    samples = Samples(askable(pipe), image)
    method_of(how), _levels(levels, method_of(how))  # refused before anything is drawn
    trace = _traced(pipe, what, samples, options)
    return explained(
        pipe, trace, samples.kept, of=of, how=how, target=target, image=image, absent=absent,
        levels=levels, noises=noises, seed=seed, batch=batch, cache=cache,
    )  # fmt: skip


@torch.no_grad()
def explained(
    pipe: Any,
    trace: Trace,
    kept: Sequence[tuple[float, Tensor]],
    *,
    of: str | Sequence[str] = "words",
    how: Any = "occlusion",
    target: Any = "image",
    image: int = 0,
    absent: str = "removed",
    levels: float | Sequence[float] | None = None,
    noises: int = 1,
    seed: int = 0,
    batch: int = 16,
    cache: str | os.PathLike[str] | None = None,
) -> Attribution:
    """Return the attribution of a trace whose run's latents were kept, or weren't.

    Args:
        pipe: the pipeline.
        trace: of the picture.
        kept: (timestep, latents) of each step of its run, by ``Samples``; without them the
            picture is noised.
        of: this and the rest as for ``attribute``.
        how: the method.
        target: what is explained.
        image: index of the image.
        absent: what takes an absent word's place.
        levels: shares of the noise schedule.
        noises: how many at each level.
        seed: of the noise.
        batch: rows of one call.
        cache: a folder.
    """
    method, probed, shares = method_of(how), askable(pipe), _levels(levels, method_of(how))
    prompt, picture = trace.run.prompt(trace._index(image)), picture_of(trace, image)
    players = players_of(prompt, of)
    texts = Texts(pipe, family_of_pipeline(pipe), prompt, players, absent)
    aim = target_of(target, pipe)
    if kept and noises == 1 and method.along:
        states = States.of_run(pipe.scheduler, probed, kept, shares)
    else:
        clean = encoded(pipe, picture)
        states = States.noised(pipe.scheduler, probed, clean, shares, noises, seed)
    store = None if cache is None else EstimateStore(cache)
    ask = Asking(probed, texts, states, batch, store)
    found = method.find(ask, aim)
    pipe.maybe_free_model_hooks()
    names, beside = tuple(p.name for p in players), _attention(trace, players, image)
    found_by = outcome(method, ask, aim, found, names, ABSENT[absent], prompt.text, beside, picture)
    places = tuple(player.positions for player in players)
    return replace(
        found_by,
        levels=tuple(dict.fromkeys(states.levels)),
        positions=places,
        trace=trace,
        image=image,
    )


def askable(pipe: Any) -> Probed:
    """Return a pipeline's family, whose denoiser can be asked at a level.

    Raises:
        TypeError: it can't.
    """
    probed = probed_family(family_of_pipeline(pipe))
    if probed is None:
        raise TypeError(
            f"{type(pipe).__name__} can't be asked what a word does yet: its family does not say "
            "how to noise an image's latents; use Stable Diffusion 1, 2, XL, 3 or FLUX.1"
        )
    return probed


def _traced(pipe: Any, what: Any, samples: Samples, options: dict[str, Any]) -> Trace:
    """Return the trace that is explained; of a prompt, draw it and keep the run's latents."""
    if isinstance(what, Trace):
        if options:
            raise ValueError(
                f"{next(iter(options))}= is an option of drawing, and a trace is drawn already; "
                "leave it out, or pass the prompt"
            )
        return what
    if not isinstance(what, str):
        raise ValueError(f"attribute() explains a trace or a prompt, one text; got {what!r}")
    trace = Trace(runs=[])
    recorded = instruments_of(Options.of(keep=(), words=None, layers=None), trace)
    with opened(PipelineOrigin(pipe), [*recorded, samples]):
        pipe(what, **options)
    return trace


def picture_of(trace: Trace, image: int) -> Image.Image:
    """Return the picture that was recorded with an image.

    Raises:
        ValueError: there is none.
    """
    picture = trace._picture(trace._index(image))
    if not isinstance(picture, Image.Image):
        raise ValueError(
            "the trace has no picture to explain: draw with output_type='pil', the default, or "
            "use xattn.probe(pipe, picture, prompt)"
        )
    return picture


def _levels(given: Any, method: Method) -> tuple[float, ...]:
    if given is None:
        return method.levels
    several = [given] if isinstance(given, float | int) else list(given)
    if not several or not all(0 < float(level) < 1 for level in several):
        raise ValueError(f"levels={given!r}: a level is a share of the noise schedule in (0, 1)")
    return tuple(sorted(map(float, several), reverse=True))


def _attention(trace: Trace, players: Sequence[Player], image: int) -> NDArray[np.float64] | None:
    """Return the mean of each word's map, where all of them were recorded."""
    with suppress(ValueError):
        means = [trace.heatmap(list(player.positions), image).mean for player in players]
        return np.array(means, dtype=np.float64)
    return None
