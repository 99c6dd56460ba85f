"""AnyFlow: Wan's blocks in few steps, on latents whose frames come before their channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from xattn.models.family import DenoiserCall
from xattn.models.wan import Wan


@dataclass(frozen=True)
class AnyFlow(Wan):
    """The family of AnyFlow (2026), from text or going on with a video; both prompts in a batch."""

    classes: tuple[str, ...] = ("AnyFlowTransformer3DModel",)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its latents, (rows, frames, channels, height, width)."""
        call = super().read(arguments, component)
        patch = int(arguments["self"].config.patch_size[0])
        return replace(call, frames=int(call.sample.shape[1]) // patch)


@dataclass(frozen=True)
class AnyFlowFAR(AnyFlow):
    """The family of AnyFlow FAR: a video in chunks, each a run.

    Between them a call keeps the keys of the chunks before; it draws nothing.
    """

    classes: tuple[str, ...] = ("AnyFlowFARTransformer3DModel",)
    segment: str = "chunk"

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call on one chunk's latents, or one that keeps keys."""
        keeps = (arguments.get("kv_cache_flag") or {}).get("is_cache_step")
        return replace(super().read(arguments, component), kind="guidance" if keeps else "any")
