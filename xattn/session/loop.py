"""A sampling loop of the user's own as the source of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from xattn.models.noise import clean_latents
from xattn.records.options import Options
from xattn.session.clock import Clock, clock_of
from xattn.session.source import Asked
from xattn.text import tokenize


class LoopSource:
    """Knows the runs of somebody's own sampling loop, as far as they say."""

    def __init__(self, unet: nn.Module, options: Options, tokenizer: Any, scheduler: Any) -> None:
        self.denoiser = unet
        self.options = options
        self.scheduler = scheduler
        tokenizers = tokenizer if isinstance(tokenizer, list | tuple) else [tokenizer]
        texts = options.prompt or ()
        found = tuple(tokenize.tokenize_all(tokenizers, text) for text in texts)
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

    def clock(self, timestep: Any) -> Clock | None:
        """Gives the scheduler's clock, or None where no scheduler was passed."""
        if self.scheduler is None:
            return None
        return clock_of(self.scheduler, None, timestep)

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


def refuse_own_loops(options: Mapping[str, Any]) -> None:
    """Raises ValueError where a pipeline came with what only a loop of one's own needs."""
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} can't be given with a pipeline, which brings its own: leave it "
            "out, or pass the UNet for a sampling loop of your own"
        )
