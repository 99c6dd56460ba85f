"""A pipeline's calls: prompts from its ``encode_prompt``, steps from its scheduler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models import encoders_of, family_of_pipeline
from xattn.models.family import Axis, DenoiserCall, Encoding, Segmented, Watching
from xattn.session import events
from xattn.session.axis import given_texts, read_texts, reader, tokenized
from xattn.session.clock import clock_of, is_time
from xattn.session.origin import Following, Turn, untimely
from xattn.session.patching import StandIn, replaced
from xattn.session.rows import RowFinder, conditional_block
from xattn.session.sampling import Asked
from xattn.session.videos import still_frames
from xattn.text.matching import check_text


class PipelineOrigin:
    """The runs of a pipeline.

    Args:
        pipe: a pipeline of a known family.
        prompt: the texts, if prompts are passed as embeddings.
        negative: whether negative prompts are recorded, too.

    Raises:
        TypeError: the pipeline's denoiser does not belong to a known family.
    """

    loop = False

    def __init__(
        self, pipe: Any, prompt: Sequence[str] | None = None, *, negative: bool = False
    ) -> None:
        self.family = family_of_pipeline(pipe)
        self.pipe = pipe
        self.prompt = prompt
        self.negative = negative
        self._latest: Asked | None = None
        self._again: Asked | None = None  # of further segments
        if negative and self.family.two_passes:
            raise ValueError(self._apart)
        self._denoisers = self.family.denoisers(pipe)
        self.denoiser: nn.Module = self._denoisers[0]
        self._frames = 1  # of the latest run's maps

    @property
    def _apart(self) -> str:
        return (
            f"negative=True can't be had with {type(self.pipe).__name__}, whose guidance runs in "
            "two passes; leave it out"
        )

    @property
    def model_name(self) -> str:
        """The hub id the pipeline came from, or the name of its folder."""
        given = str(getattr(self.pipe.config, "_name_or_path", "") or "")
        return name_of_model(given) or type(self.pipe).__name__

    @property
    def scheduler(self) -> Any:
        """The pipeline's current scheduler."""
        return self.pipe.scheduler

    def components(self) -> list[tuple[str, nn.Module]]:
        """Return the models with text attention, and the prefix of their layers' names each."""
        found = [("", denoiser) for denoiser in self._denoisers]
        nets = getattr(self.pipe, "controlnet", None)
        if nets is not None:
            several = getattr(nets, "nets", None)
            for i, net in enumerate(several if several is not None else [nets]):
                found.append(("controlnet." if several is None else f"controlnet.{i}.", net))
        return found

    def asked(self) -> Asked | None:
        """Return the prompts of further segments; others the pipeline announces in events."""
        return self._again

    # -- events ------------------------------------------------------------------------------------

    @contextmanager
    def watched(self, receive: events.Receive) -> Iterator[None]:
        """Report the start of a run (``encode_prompt``), its end and its pictures."""
        pipe = self.pipe

        def ending(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._again = None
            try:
                receive(events.Ended())
            finally:
                result = method(*args, **kwargs)
            return result

        def drawing(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            images = method(*args, **kwargs)
            if isinstance(images, list):
                receive(events.Pictures(images))
            return images

        def filming(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            videos = method(*args, **kwargs)
            if not isinstance(self.family, Segmented):  # it holds the frames of all segments
                receive(events.Pictures(still_frames(videos, self._frames)))
            return videos

        with ExitStack() as stack:
            for name in encoders_of(self.family):
                _wrap(stack, pipe, name, functools.partial(self._encode, receive))
            if isinstance(self.family, Watching):
                stack.enter_context(self.family.watching(pipe))
            _wrap(stack, pipe, "maybe_free_model_hooks", ending)
            if hasattr(getattr(pipe, "image_processor", None), "postprocess"):
                _wrap(stack, pipe.image_processor, "postprocess", drawing)
            if getattr(pipe, "video_processor", None) is not None:
                _wrap(stack, pipe.video_processor, "postprocess_video", filming)
            yield

    def _encode(self, receive: events.Receive, encode: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what encodes prompts, and report them."""
        self._check_denoiser()
        given = _arguments(encode, args, kwargs)
        _check_texts(given)
        receive(events.Asking())
        given = _arguments(encode, args, kwargs)  # Z-Image writes into a list of prompts
        result = found = encode(*args, **kwargs)
        if isinstance(self.family, Encoding):
            given, found = self.family.as_encoded(given, result)
        asked = self._asked(given, found)
        self._again = asked if isinstance(self.family, Segmented) else None
        receive(events.Encoded(asked))
        return result

    def _check_denoiser(self) -> None:
        now = self.family.denoisers(self.pipe)
        if any(one is not two for one, two in zip(now, self._denoisers, strict=True)):
            raise RuntimeError(
                "the denoiser was exchanged inside the block, and the new one isn't recorded; "
                "exchange it first, then record(pipe)"
            )

    def asked_of(self, texts: Sequence[str], result: Any) -> Asked:
        """Return prompts and embeddings of texts that ``encode_prompt`` turned into a result."""
        return self._asked({"prompt": list(texts)}, result)

    def _asked(self, given: dict[str, Any], result: Any) -> Asked:
        embeds = self.family.encoded(result)
        axes: Sequence[Axis] = self.family.axes(self.pipe, embeds.positive, given)
        positive = axes
        images, length = len(embeds.positive), embeds.positive.shape[1]
        if axes[-1].length is not None:  # embeddings of one encoder, of several
            length = axes[-1].offset + axes[-1].length
        texts = given_texts(given.get("prompt")) or list(self.prompt or ())
        found = tokenized(axes, read_texts(axes, given, texts), length, images)
        per_prompt = images // len(found)
        prompt_of = [i // per_prompt for i in range(images)]
        if self.negative and embeds.negative is not None:
            texts = given_texts(given.get("negative_prompt")) or [""]
            axes = [axis.negatives or axis for axis in axes]
            read = read_texts(axes, given, texts, "negative_")
            more = tokenized(axes, read, length, images)
            prompt_of += [len(found) + i * len(more) // images for i in range(images)]
            found += more
        asked = Asked(
            tuple(found),
            tuple(prompt_of),
            embeds.positive,
            embeds.negative,
            tokenize=reader(positive, length),
            length=length,
            repeats=embeds.repeats,
        )
        if self.family.two_passes:
            before, self._latest = self._latest, asked
            asked = replace(asked, before=before)
        return asked

    # -- calls -------------------------------------------------------------------------------------

    def turn(
        self,
        call: DenoiserCall,
        following: Following | None,
        asked: Asked | None,
        fresh: Asked | None,
    ) -> Turn:
        """Return what a call means, by its timestep and its text."""
        if call.kind == "guidance" or call.states is None:
            return Turn.PASS
        if following is None or following.clock is None:
            found = asked is not None and _matches(asked, call) and self._begins(call)
            return Turn.FIRST if found else Turn.PASS
        ours = following.rows.find(call) is not None
        timely = following.clock.is_at(following.number, call.timestep)
        begins = fresh is not None and _matches(fresh, call)
        if ours and timely and not (begins and following.number == 0):
            return Turn.NEXT
        if begins:
            return Turn.FRESH
        # where the negative prompt equals the prompt, the second pass looks like the first
        if following.rows.is_negative(call) and not (ours and timely):
            if self.negative:  # the family can run both ways
                raise RuntimeError(self._apart)
            return Turn.PASS
        if ours:
            raise RuntimeError(untimely(call, following.clock.schedule, following.number))
        if timely:
            raise RuntimeError(
                "the denoiser received a text which this pipeline call did not encode "
                "(were the embeddings changed during the run?): its words would get wrong "
                "labels; record the UNet itself, with xattn.Loop(unet, rows=, prompt= ...)"
            )
        return Turn.PASS  # another pipeline's call on a shared denoiser

    def _begins(self, call: DenoiserCall) -> bool:
        """Return whether a segment can begin with a call; a pass of guidance can have its text."""
        if not isinstance(self.family, Segmented):
            return True
        return is_time(call.timestep, float(self.pipe.scheduler.timesteps[0]))

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        """Return a run beginning with a call, on the clock of the pipeline's scheduler."""
        calls = getattr(self.pipe, "_num_timesteps", None)
        clock = clock_of(self.pipe.scheduler, calls, call.timestep)
        asked = _followed(asked, call) or asked
        perturbed = getattr(self.pipe, "do_perturbed_attention_guidance", False)
        asked = replace(asked, perturbed=bool(perturbed))
        self._frames = call.frames
        return Following(asked, clock, RowFinder(asked))

    def facts(self) -> dict[str, Any]:
        """Return facts about a run, as plain JSON values."""
        guidance = getattr(self.pipe, "_guidance_scale", None)
        return {
            "pipeline": type(self.pipe).__name__,
            "model": self.model_name,
            "scheduler": type(self.pipe.scheduler).__name__,
            "guidance_scale": None if guidance is None else float(guidance),
        }


def name_of_model(given: str) -> str:
    """Return a hub id unchanged; for a local folder its name, or the hub id behind it."""
    path = PureWindowsPath(given) if PureWindowsPath(given).drive else PurePosixPath(given)
    if not path.is_absolute():
        return given
    for part in path.parts:  # the hub's cache: models--owner--name/snapshots/commit
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def _arguments(method: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(method).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments.items()
    return {name: list(value) if isinstance(value, list) else value for name, value in given}


def _check_texts(given: Mapping[str, Any]) -> None:
    """Raise ValueError for a text that no tokenizer can read."""
    for name, value in given.items():
        texts = value if isinstance(value, list | tuple) else [value]
        for text in texts:
            if isinstance(text, str):
                check_text(text, f"{name}=")


def _wrap(stack: ExitStack, owner: Any, name: str, call: Callable[..., Any]) -> None:
    method = getattr(owner, name)
    stand_in = StandIn(owner, method, functools.partial(call, method))
    stack.enter_context(replaced(owner, name, stand_in))


def _matches(asked: Asked, call: DenoiserCall) -> bool:
    return _followed(asked, call) is not None


def _followed(asked: Asked, call: DenoiserCall) -> Asked | None:
    """Return which of the texts asked for a call follows, the other as its negative."""
    if call.states is None or asked.embeds is None:
        return None
    if asked.repeats:
        guided = 1 if asked.negative_embeds is None else 2
        counts = {call.rows // (len(asked.embeds) * n) for n in (guided, 1)}
        tried = map(asked.times, sorted(counts - {0}))
        return next((one for one in tried if _fits(one, call)), None)
    if asked.before is not None and _share_a_batch(asked.before, asked, call.states):
        return replace(asked.before, negative_embeds=asked.embeds)
    if conditional_block(call.states, asked.embeds) is not None:
        earlier = None if asked.before is None else asked.before.embeds
        if asked.negative_embeds is None and earlier is not None and _equal(earlier, asked.embeds):
            return replace(asked, negative_embeds=asked.embeds)
        return asked
    if asked.before is None:
        return None
    before = _followed(asked.before, call)
    return None if before is None else replace(before, negative_embeds=asked.embeds)


def _share_a_batch(prompts: Asked, negatives: Asked, states: Tensor) -> bool:
    """Return whether negative prompts with a call of their own stand in front of the prompts."""
    one, two = negatives.embeds, prompts.embeds
    if one is None or two is None or len(one) != len(two) or len(states) != 2 * len(one):
        return False
    return bool(
        conditional_block(states[: len(one)], one) and conditional_block(states[len(one) :], two)
    )


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one, two)


def _fits(asked: Asked, call: DenoiserCall) -> bool:
    assert asked.embeds is not None
    return call.states is not None and conditional_block(call.states, asked.embeds) is not None
