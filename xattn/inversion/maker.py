"""What made an inversion: the model and the schedule, as data that a file can hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from xattn.models import family_of_pipeline


@dataclass(frozen=True)
class Maker:
    """The settings that an inversion depends on.

    Attributes:
        model: class of the denoiser.
        digest: checksum of its configuration and of some of each weight.
        dtype: its dtype.
        scheduler: class of the scheduler.
        config: settings of the scheduler, as text.
    """

    model: str
    digest: str
    dtype: str
    scheduler: str
    config: Mapping[str, str]

    @classmethod
    def of(cls, pipe: Any) -> Maker:
        """Read the settings of a pipeline."""
        denoiser: Any = family_of_pipeline(pipe).denoisers(pipe)[0]
        model = getattr(denoiser, "_orig_mod", denoiser)
        config = {k: repr(v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
        dtype = str(model.dtype).removeprefix("torch.")
        scheduler = type(pipe.scheduler).__name__
        return cls(type(model).__name__, digest_of(model), dtype, scheduler, config)

    def check(self, pipe: Any) -> None:
        """Raise ValueError if a pipeline's settings differ."""
        now = Maker.of(pipe)
        if (now.model, now.digest) != (self.model, self.digest):
            was = f"by another {self.model}, or one with other weights or LoRAs"
        elif now.dtype != self.dtype:
            was = f"in {self.dtype}, and the denoiser is now in {now.dtype}"
        elif now.scheduler != self.scheduler:
            was = f"with {self.scheduler}, and the pipeline has {now.scheduler}"
        elif now.config != self.config:
            names = sorted(dict(now.config.items() ^ self.config.items()))
            was = f"with another {names[0]} of the scheduler"
        else:
            return
        raise ValueError(f"the photograph was inverted {was}: invert it again")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "config": dict(self.config)}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Maker:
        """Read what ``to_json`` wrote."""
        config = {str(k): str(v) for k, v in given["config"].items()}
        model, digest, dtype, scheduler = (
            str(given[name]) for name in ("model", "digest", "dtype", "scheduler")
        )
        return cls(model, digest, dtype, scheduler, config)


def digest_of(model: nn.Module) -> str:
    """Return a checksum of eight numbers of every weight; of the names alone where offloaded."""
    names = hashlib.blake2b(digest_size=16)
    parts = []
    for name, weight in model.named_parameters():
        names.update(f"{name}{tuple(weight.shape)}".encode())
        if weight.device.type != "meta":
            flat = weight.detach().reshape(-1)
            parts.append(flat[:: max(1, len(flat) // 8)][:8].float())
    if parts:
        names.update(torch.cat(parts).cpu().numpy().tobytes())
    return names.hexdigest()
