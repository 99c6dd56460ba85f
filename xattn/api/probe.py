"""``probe(pipe, image, prompt)``: where the words of a text act in a given image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn.api.concepts import concept_names, encode_prompts, encoded_concepts
from xattn.api.photos import Photo, Pictures, Room, fitted, photos
from xattn.api.presence import content_words, evidence
from xattn.api.record import Words, instruments_of
from xattn.edits.timing import is_number
from xattn.instruments.concepts import Concept
from xattn.models import family_of_pipeline
from xattn.models.family import DenoiserCall
from xattn.models.probing import encoded_pictures, probed_family
from xattn.records.concepts import BACKGROUND, EVIDENCE, evidence_run
from xattn.records.options import Options
from xattn.records.run import Run
from xattn.records.stores import ImageStore
from xattn.results.trace import Trace
from xattn.session.clock import Clock, Schedule
from xattn.session.instrument import Instrument
from xattn.session.origin import Following
from xattn.session.pipeline import PipelineOrigin
from xattn.session.rows import RowFinder
from xattn.session.sampling import Asked
from xattn.session.session import opened
from xattn.toyland.calibration import fingerprint

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Default levels: their mean points right more often than any one of them."""


@torch.no_grad()
def probe(
    pipe: Any,
    image: Pictures,
    prompt: str | Sequence[str],
    *,
    levels: float | Sequence[float] = LEVELS,
    seeds: int = 1,
    seed: int | Sequence[int] = 0,
    size: tuple[int, int] | None = None,
    batch: int = 8,
    keep: str | Iterable[str] = ("step", "layer"),
    words: Words = None,
    layers: str | Sequence[str] | None = None,
    dtype: torch.dtype = torch.float16,
    affinity: bool = False,
    also: str | Sequence[str] | None = None,
    outputs: bool = False,
    presence: bool = False,
) -> Trace:
    """Return a trace of where the words of a text act in a given image.

    The image is encoded by the pipeline's autoencoder, noised to some levels of the schedule, and
    passed once through the denoiser at each, without guidance. The steps of the trace are the
    levels, the noisiest first. Nothing is drawn, and the pipeline is left as it was found.

    A picture that is not of a size that the model takes (whole cells of its coarsest grid, half to
    twice the area it was made for) is scaled to the model's own area, and its sides are rounded to
    whole cells; ``trace.run.info["picture"]`` says so.

    Args:
        pipe: a pipeline of a family that can be probed: Stable Diffusion 1, 2, XL, 3, or FLUX.1.
        image: a PIL image, a path, a list of them, or a folder. Several make a run each, in their
            order: ``trace[2]`` is the trace of the third.
        prompt: the text, or one for each image.
        levels: shares of the noise schedule, between 0 and 1: near 0 nearly clean, near 1 nearly
            noise. One pass of the denoiser each.
        seeds: how many noises to average at each level; the passes multiply.
        seed: of the first noise, the others count up; or one for each image. Noise is drawn on
            the CPU in float32, each level's after that of the one above it.
        size: (height, width) in pixels to resize every image to instead.
        batch: how many images of one size pass together.
        keep: as for ``record``; a step is a level.
        words: as for ``record``.
        layers: as for ``record``.
        dtype: as for ``record``.
        affinity: as for ``record``.
        also: as for ``record``; with it the prompt can be empty.
        outputs: as for ``record``.
        presence: measure for ``trace.presence`` and ``trace.verdict`` whether each word of the
            prompt (but articles, prepositions ...) and of ``also`` is in the picture. Each of
            them, and the empty text, is a further row of the denoiser at each level and noise:
            (words + 1) x levels x seeds for a picture, in calls of ``batch`` rows. With ``also``,
            ``trace.concepts`` then takes the form "evidence".

    Raises:
        TypeError: the model's family can't be probed, or an image is not a picture.
        ValueError: an option is out of its range, an image can't be read, or a word is not in the
            prompt.

    Example:
        >>> from xattn.toyland import scene
        >>> trace = xattn.probe(xattn.demo(), scene(1).image, scene(1).caption)
        >>> trace.grid().save("words.png")
    """
    options = Options.of(
        keep=keep, words=words, layers=layers, dtype=dtype, affinity=affinity, outputs=outputs
    )
    return passed(
        pipe, image, prompt, options, levels=levels, seeds=seeds, seed=seed, size=size,
        batch=batch, also=also, presence=presence,
    )  # fmt: skip


@torch.no_grad()
def passed(
    pipe: Any,
    image: Pictures,
    prompt: str | Sequence[str],
    options: Options,
    *,
    levels: float | Sequence[float] = LEVELS,
    seeds: int = 1,
    seed: int | Sequence[int] = 0,
    size: tuple[int, int] | None = None,
    batch: int = 8,
    also: str | Sequence[str] | None = None,
    presence: bool = False,
    instruments: Sequence[Instrument] = (),
) -> Trace:
    """Return a trace as ``probe`` does, with further instruments behind the recorder's.

    Args:
        pipe: this and the rest as for ``probe``.
        image: the pictures.
        prompt: their texts.
        options: what is recorded.
        levels: shares of the schedule.
        seeds: noises at each level.
        seed: of the first.
        size: of every image.
        batch: how many pass together.
        also: further words.
        presence: whether to measure it.
        instruments: what else acts in the passes; opened anew for each batch.
    """
    shares, noises = _levels(levels), _whole("seeds", seeds)
    origin = ProbeOrigin(pipe, shares, noises)
    names = concept_names(also)
    given = photos(image)
    texts = _one_each("prompt", prompt, len(given))
    starts = _one_each("seed", seed, len(given))
    room = Room.of(pipe)
    shown = [fitted(photo, room.sized(photo.image.size, size)) for photo in given]
    concepts = encoded_concepts(pipe, names) if names else []
    trace = Trace(runs=[])
    for group in _groups(shown, _whole("batch", batch)):
        runs = _probed(
            origin,
            [shown[i] for i in group],
            [texts[i] for i in group],
            [starts[i] for i in group],
            options,
            concepts,
            instruments,
        )
        if presence:
            for run, i in zip(runs, group, strict=True):
                _add_presence(run, origin, shown[i], texts[i], starts[i], names, batch)
        trace.runs += runs
    return trace


def _add_presence(
    run: Run,
    origin: ProbeOrigin,
    photo: Photo,
    text: str,
    start: int,
    also: Sequence[str],
    batch: int,
) -> None:
    """Add the evidence of a picture's words to its run, by the noises of its probe.

    Raises:
        ValueError: neither the prompt nor ``also`` has a word that could be in a picture.
    """
    own = content_words(text)
    more = [name for name in also if name != BACKGROUND]
    asked = list(dict.fromkeys([*own, *more]))
    if not asked:
        raise ValueError(f"presence=True: the prompt {text!r} has no word to look for; use also=")
    levels = list(zip(origin.levels, origin.at, strict=True))
    noises = _generators(start, origin.noises)
    found, cells = evidence(origin.pipe, origin.family, photo.image, asked, levels, noises, batch)
    run.info["presence"] = {
        **found, "text": own, "fingerprint": list(fingerprint(origin.denoiser))
    }  # fmt: skip
    if run.concepts and more:
        index = [asked.index(name) for name in more]
        run.concepts[EVIDENCE] = evidence_run(run, more, cells[:, index])


class ProbeOrigin(PipelineOrigin):
    """The passes of a probe, made like a sampling whose steps are levels.

    Args:
        pipe: the pipeline.
        levels: shares of the schedule, descending.
        noises: passes for each level.

    Raises:
        TypeError: the model's family can't be probed.
    """

    def __init__(self, pipe: Any, levels: Sequence[float], noises: int) -> None:
        family = family_of_pipeline(pipe)
        probed = probed_family(family)
        if probed is None:
            raise TypeError(
                f"{type(pipe).__name__} can't be probed yet: its family does not say how to noise "
                "an image's latents; probe Stable Diffusion 1, 2, XL, 3 or FLUX.1"
            )
        super().__init__(pipe)
        self.probed = probed
        self.levels = tuple(levels)
        self.noises = noises
        self.at = tuple(probed.level_timestep(pipe.scheduler, level) for level in levels)

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        """Return a run of all levels, each noise a call of its step."""
        steps = tuple(step for step in range(len(self.at)) for _ in range(self.noises))
        calls = tuple(self.at[step] for step in steps)
        plan = Schedule(steps, self.at, calls)
        return Following(asked, Clock(plan, torch.tensor(calls), 0), RowFinder(asked))

    def facts(self) -> dict[str, object]:
        """Return facts about the run, as plain JSON values."""
        facts = {**super().facts(), "guidance_scale": None}
        return {**facts, "levels": list(self.levels), "noises": self.noises}


def _probed(
    origin: ProbeOrigin,
    group: Sequence[Photo],
    texts: Sequence[str],
    starts: Sequence[int],
    options: Options,
    concepts: Sequence[Concept],
    instruments: Sequence[Instrument],
) -> list[Run]:
    """Pass a group of photos of one size at every level, and return a run for each."""
    pipe, runs = origin.pipe, Trace(runs=[])
    with opened(origin, [*instruments_of(options, runs, concepts), *instruments]):
        device = torch.device(pipe._execution_device)
        encoded = encode_prompts(pipe, texts, device)
        kind = origin.family.encoded(encoded).positive.dtype
        pixels = pipe.image_processor.preprocess([photo.image for photo in group])
        clean = encoded_pictures(pipe, pixels.to(device))
        drawn = [_generators(start, origin.noises) for start in starts]
        for level, timestep in zip(origin.levels, origin.at, strict=True):
            for number in range(origin.noises):
                noise = torch.stack([_noise(clean, each[number]) for each in drawn]).to(device)
                latents = origin.probed.noised(pipe.scheduler, clean, noise, level)
                origin.probed.denoise(pipe, latents.to(kind), timestep, encoded)
        pipe.maybe_free_model_hooks()
    return [_single(runs.run, i, photo) for i, photo in enumerate(group)]


def _generators(start: int, noises: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + n) for n in range(noises)]


def _noise(clean: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(clean.shape[1:], generator=generator)


def _single(run: Run, image: int, photo: Photo) -> Run:
    """Return the run of one image of a batch."""
    affinity = None if run.affinity is None else run.affinity[image : image + 1]
    return replace(
        _of_image(run, image),
        concepts={form: _of_image(own, image) for form, own in run.concepts.items()},
        info={**run.info, "picture": str(photo)},
        images=[photo.image],
        affinity=affinity,
        outputs={name: each[image : image + 1] for name, each in run.outputs.items()},
    )


def _of_image(run: Run, image: int) -> Run:
    store = ImageStore(run.store, image, len(run.prompt_of))
    return replace(run, prompts=(run.prompt(image),), prompt_of=(0,), store=store)


# -- what was asked for


def _levels(given: Any) -> tuple[float, ...]:
    several = [given] if is_number(given) else list(given)
    right = all(is_number(level) and 0 < float(level) < 1 for level in several)
    if not several or not right or len(set(several)) != len(several):
        raise ValueError(
            f"levels={given!r}: a level is a share of the noise schedule between 0 and 1, each "
            "given once; 0.5 is halfway"
        )
    return tuple(sorted(map(float, several), reverse=True))


def _whole(name: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ValueError(f"{name}={given!r} must be a whole number, 1 or more")
    return given


def _one_each(name: str, given: Any, count: int) -> list[Any]:
    """Return one value for each image, from one for all or a list."""
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise ValueError(f"{name} has {len(given)} entries for {count} images; give one for each")
    return list(given)


def _groups(shown: Sequence[Photo], batch: int) -> list[list[int]]:
    """Return groups of neighbours of one size, at most ``batch`` each."""
    groups: list[list[int]] = []
    for number, photo in enumerate(shown):
        last = groups[-1] if groups else []
        if last and len(last) < batch and shown[last[0]].image.size == photo.image.size:
            last.append(number)
        else:
            groups.append([number])
    return groups
