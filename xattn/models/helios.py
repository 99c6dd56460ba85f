"""Helios: Wan's blocks, on a video in windows that go on with those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xattn.models.family import DenoiserCall
from xattn.models.wan import Wan


@dataclass(frozen=True)
class Helios(Wan):
    """The family of Helios (2026): each window is a run, and so is each stage of a pyramid's.

    The frames of windows before stand in front of a window's own, and read no text.
    """

    classes: tuple[str, ...] = ("HeliosTransformer3DModel",)
    segment: str = "window"

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call by its window's latents.

        Raises:
            RuntimeError: the frames before the window read the text, too.
        """
        if not arguments["self"].config.guidance_cross_attn:
            raise RuntimeError(
                "guidance_cross_attn=False lets the frames before a window read the text, too, "
                "packed at several scales: xattn doesn't know where the window's own stand"
            )
        return super().read(arguments, component)
