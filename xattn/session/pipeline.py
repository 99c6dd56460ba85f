"""A pipeline as the source of runs: its prompts, calls and images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor, nn

from xattn.models.noise import clean_latents
from xattn.records.options import Options
from xattn.session import patching
from xattn.session.clock import Clock, clock_of
from xattn.session.loop import LoopSource
from xattn.session.rows import Encoded, encoded
from xattn.session.source import Asked
from xattn.text import prompt, tokenize

_TWO_TEXTS = "two different texts share one token axis (prompt and prompt_2)"


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
        self.on_asked: Callable[[Asked], None] = lambda asked: None
        self.on_end: Callable[[], None] = lambda: None
        self.on_pictures: Callable[[], None] = lambda: None
        self.pictures: list[Any] | None = None

    @property
    def model_name(self) -> str:
        """The hub id that the pipeline came from, or the folder's name."""
        given = str(getattr(self.pipe.config, "_name_or_path", "") or "")
        return name_of_model(given) or type(self.pipe).__name__

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

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            self.on_prompt()
            result = encode(*args, **kwargs)
            self.on_asked(self._asked(encoded(encode, args, kwargs, result)))
            return result

        with ExitStack() as stack:
            self._replace(stack, pipe, "encode_prompt", encode_prompt)
            self._replace(stack, pipe, "maybe_free_model_hooks", self._ending)
            processor = getattr(pipe, "image_processor", None)
            if processor is not None:
                self._replace(stack, processor, "postprocess", self._keeping_pictures)
            yield

    def _replace(self, stack: ExitStack, owner: Any, name: str, call: Callable[..., Any]) -> None:
        method = getattr(owner, name)
        if name != "encode_prompt":
            call = functools.partial(call, method)
        stack.enter_context(patching.replaced(owner, name, patching.StandIn(owner, method, call)))

    def _ending(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            self.on_end()
        finally:
            result = method(*args, **kwargs)
        return result

    def _keeping_pictures(self, postprocess: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        images = postprocess(*args, **kwargs)
        if self.pictures is not None and isinstance(images, list):
            self.pictures[:] = images
            self.pictures = None  # what is drawn afterwards isn't this run's
            self.on_pictures()
        return images

    def _asked(self, call: Encoded) -> Asked:
        given = call.arguments
        texts = _texts(given.get("prompt")) or list(self.options.prompt or ())
        images = call.rows
        second = _texts(given.get("prompt_2"))
        found = self._tokenized(texts, call.prompt_embeds.shape[1], images)
        if second and second != texts:
            found = [prompt.Prompt.clashing(p.text, p.length, _TWO_TEXTS) for p in found]
        per_prompt = images // len(found)
        asked = [i // per_prompt for i in range(images)]
        if self.options.negative and call.negative_embeds is not None:
            negatives = _texts(given.get("negative_prompt")) or [""]
            more = self._tokenized(negatives, call.prompt_embeds.shape[1], images)
            if (_texts(given.get("negative_prompt_2")) or negatives) != negatives:
                more = [prompt.Prompt.clashing(p.text, p.length, _TWO_TEXTS) for p in more]
            asked += [len(found) + i * len(more) // images for i in range(images)]
            found += more
        return Asked(tuple(found), tuple(asked), call.prompt_embeds, call.negative_embeds)

    def _tokenized(self, texts: list[str], length: int, images: int) -> list[prompt.Prompt]:
        if not texts:
            return [prompt.Prompt.anonymous(length)]
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
        # a T5 pipeline reads fewer tokens than its tokenizer could
        length = min(length, min(int(t.model_max_length) for t in tokenizers))
        return [
            tokenize.tokenize_common(tokenizers, text, max_length=length, convert=convert)
            for text in texts
        ]

    def clock(self, timestep: Any) -> Clock | None:
        """Gives the clock of the run whose first denoiser call is about to be made."""
        calls = getattr(self.pipe, "_num_timesteps", None)
        return clock_of(self.pipe.scheduler, calls, timestep)

    def clean(self, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Gives the clean latents that a denoiser's output means."""
        return clean_latents(self.pipe.scheduler, sample, output, timestep)

    def facts(self) -> dict[str, Any]:
        """Gives what is worth knowing about a run, as plain JSON values."""
        guidance = getattr(self.pipe, "_guidance_scale", None)
        return {
            "pipeline": type(self.pipe).__name__,
            "model": self.model_name,
            "scheduler": type(self.pipe.scheduler).__name__,
            "guidance_scale": None if guidance is None else float(guidance),
        }


Source = PipelineSource | LoopSource


def name_of_model(given: str) -> str:
    """Return a hub id as it is; of a folder on this machine its name, or the hub id behind it."""
    path = PureWindowsPath(given) if PureWindowsPath(given).drive else PurePosixPath(given)
    if not path.is_absolute():
        return given
    for part in path.parts:  # the hub's cache: models--owner--name/snapshots/commit
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def _texts(given: Any) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)
