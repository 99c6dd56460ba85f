"""Where runs come from: a pipeline's calls, or somebody's own sampling loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor, nn

from xattn import hooks, prompts
from xattn.options import Options

_TWO_TEXTS = "two different texts share one token axis (prompt and prompt_2)"


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
            self.on_asked(self._asked(hooks.encoded(encode, args, kwargs, result)))
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
        stack.enter_context(hooks.replaced(owner, name, hooks.StandIn(owner, method, call)))

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

    def _asked(self, call: hooks.Encoded) -> Asked:
        given = call.arguments
        texts = _texts(given.get("prompt")) or list(self.options.prompt or ())
        images = call.rows
        second = _texts(given.get("prompt_2"))
        found = self._tokenized(texts, call.prompt_embeds.shape[1], images)
        if second and second != texts:
            found = [prompts.Prompt.clashing(p.text, p.length, _TWO_TEXTS) for p in found]
        per_prompt = images // len(found)
        asked = [i // per_prompt for i in range(images)]
        if self.options.negative and call.negative_embeds is not None:
            negatives = _texts(given.get("negative_prompt")) or [""]
            more = self._tokenized(negatives, call.prompt_embeds.shape[1], images)
            if (_texts(given.get("negative_prompt_2")) or negatives) != negatives:
                more = [prompts.Prompt.clashing(p.text, p.length, _TWO_TEXTS) for p in more]
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
        # a T5 pipeline reads fewer tokens than its tokenizer could
        length = min(length, min(int(t.model_max_length) for t in tokenizers))
        return [
            prompts.tokenize_common(tokenizers, text, max_length=length, convert=convert)
            for text in texts
        ]

    def clock(self, timestep: Any) -> hooks.Clock | None:
        """Gives the clock of the run whose first denoiser call is about to be made."""
        calls = getattr(self.pipe, "_num_timesteps", None)
        return hooks.clock_of(self.pipe.scheduler, calls, timestep)

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


class LoopSource:
    """Knows the runs of somebody's own sampling loop, as far as they say."""

    def __init__(self, unet: nn.Module, options: Options, tokenizer: Any, scheduler: Any) -> None:
        self.denoiser = unet
        self.options = options
        self.scheduler = scheduler
        tokenizers = tokenizer if isinstance(tokenizer, list | tuple) else [tokenizer]
        texts = options.prompt or ()
        found = tuple(prompts.tokenize_all(tokenizers, text) for text in texts)
        self.asked: Asked | None = Asked(found, tuple(range(len(found))), options.embeds)
        self.on_prompt: Callable[[], None] = lambda: None
        self.on_asked: Callable[[Asked], None] = lambda asked: None
        self.on_end: Callable[[], None] = lambda: None
        self.on_pictures: Callable[[], None] = lambda: None
        self.pictures: list[Any] | None = None

    def components(self) -> dict[str, nn.Module]:
        """Gives the UNet alone."""
        return {"": self.denoiser}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Has nothing to listen to."""
        yield

    def clock(self, timestep: Any) -> hooks.Clock | None:
        """Gives the scheduler's clock, or None where no scheduler was passed."""
        if self.scheduler is None:
            return None
        return hooks.clock_of(self.scheduler, None, timestep)

    def clean(self, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Gives the clean latents that a denoiser's output means."""
        return clean_latents(self.scheduler, sample, output, timestep)

    def facts(self) -> dict[str, Any]:
        """Gives what is worth knowing about a run, as plain JSON values."""
        return {
            "pipeline": "own loop",
            "model": type(self.denoiser).__name__,
            "scheduler": type(self.scheduler).__name__ if self.scheduler is not None else None,
            "guidance_scale": None,
        }


Source = PipelineSource | LoopSource


def clean_latents(scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
    """Gives the clean latents that a denoiser's output at a timestep means (Ho et al. 2020).

    ``sample`` is the denoiser's input: schedulers scale it to unit variance before the call, so
    one formula holds for all of them.

    Raises:
        ValueError: the scheduler has no ``alphas_cumprod``.
    """
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(
            f"previews=True can't be had with {type(scheduler).__name__}, which has no "
            "alphas_cumprod; leave it out"
        )
    index = min(max(round(timestep), 0), len(alphas) - 1)
    alpha = float(alphas[index])
    sample = sample[:, : output.shape[1]].float()  # an inpainting UNet sees mask and image too
    output = output.float()
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "sample":
        return output
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if kind == "v_prediction":
        return signal * sample - noise * output
    return (sample - noise * output) / signal


def name_of_model(given: str) -> str:
    """Return a hub id as it is; of a folder on this machine its name, or the hub id behind it."""
    path = PureWindowsPath(given) if PureWindowsPath(given).drive else PurePosixPath(given)
    if not path.is_absolute():
        return given
    for part in path.parts:  # the hub's cache: models--owner--name/snapshots/commit
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def refuse_own_loops(options: Mapping[str, Any]) -> None:
    """Raises ValueError where a pipeline came with what only a loop of one's own needs."""
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} can't be given with a pipeline, which brings its own: leave it "
            "out, or pass the UNet for a sampling loop of your own"
        )


def _texts(given: Any) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)
