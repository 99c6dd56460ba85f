"""A source that was run before, kept so that later edits needn't sample it again."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Pairs = list[tuple[Tensor, Tensor]]


OF_ONE_CALL = (
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "callback",
    "callback_steps",
)
"""Options of a pipeline that watch one call of it, and say nothing about what it draws."""


@dataclass(frozen=True)
class Maker:
    """What a source was drawn by: what is kept of it fits nothing else.

    Attributes:
        pipeline: the pipeline's class.
        model: the denoiser, which isn't kept alive by this.
        dtype: the denoiser's.
        scheduler: the scheduler's class.
        config: the scheduler's settings.
    """

    pipeline: type
    model: weakref.ref[Any]
    dtype: torch.dtype
    scheduler: type
    config: dict[str, str]

    @classmethod
    def of(cls, pipe: Any) -> Maker:
        """Reads it from a pipeline."""
        config = {k: repr(v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
        model = getattr(pipe.unet, "_orig_mod", pipe.unet)
        return cls(type(pipe), weakref.ref(model), model.dtype, type(pipe.scheduler), config)

    def check(self, pipe: Any) -> None:
        """Raises ValueError where a pipeline isn't the one that it was."""
        now = Maker.of(pipe)
        if now.pipeline is not self.pipeline:
            was = f"by a {self.pipeline.__name__}, and this is a {now.pipeline.__name__}"
        elif now.model() is not self.model():
            was = "by another UNet"
        elif now.dtype != self.dtype:
            was = f"in {self.dtype}, and the UNet is now in {now.dtype}"
        elif now.scheduler is not self.scheduler:
            was = f"with {self.scheduler.__name__}, and the pipeline has {now.scheduler.__name__}"
        elif now.config != self.config:
            names = sorted(dict(now.config.items() ^ self.config.items()))
            was = f"with another {names[0]} of the scheduler"
        else:
            return
        raise ValueError(f"source was drawn {was}: draw it again with keep_source=True")


@dataclass
class KeptSource:
    """What edits need of a source's run: attention inputs, latents, maps, and the noise's seed.

    Of every cross-attention layer, and of the self-attention layers that edits may touch, the
    queries of each denoiser call and the keys: numbers in the run's dtype. For Stable Diffusion
    1.5 at 512 px in half precision that is about 30 MB a step for each image.

    Attributes:
        prompt: the source's prompt.
        images: how many images it has, one for each seed.
        options: what the pipeline was called with, less its callbacks.
        maker: what it was drawn by; nothing else can go on from it.
        timesteps: of each denoiser call.
        generators: as they stood before the run.
        layers: for each layer the source's queries and keys at each denoiser call.
        latents: after each step, LocalBlends applied, (images, channels, height, width).
        maps: LocalBlend's maps, summed over the steps so far, (images, tokens, h, w).
        pictures: the source's images.
    """

    prompt: str
    images: int
    options: dict[str, Any] = field(default_factory=dict)
    maker: Maker | None = None
    timesteps: tuple[float, ...] = ()
    generators: list[torch.Generator] = field(default_factory=list)
    layers: dict[str, Pairs] = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        tensors = [t for calls in self.layers.values() for pair in calls for t in pair]
        distinct = {t.data_ptr(): t.nbytes for t in [*tensors, *self.latents, *self.maps]}
        return sum(distinct.values())

    def share_keys(self, layers: Iterable[str]) -> None:
        """Has keys that stayed as they were from call to call (the text's) take room once.

        Meant for the end of the run: comparing waits for the device.
        """
        for name in layers:
            calls = self.layers.get(name, [])
            keys = [key for _, key in calls]
            if len(keys) < 2 or len({key.shape for key in keys}) > 1:
                continue
            same = torch.stack([(a == b).all() for a, b in pairwise(keys)]).tolist()
            for i, equal in enumerate(same, start=1):
                if equal:
                    calls[i] = calls[i][0], calls[i - 1][1]
