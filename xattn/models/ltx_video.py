"""LTX-Video: T5's words in cross-attention of its own, latents of a video as one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.separate import Separate


@dataclass(frozen=True)
class LTXVideo(Separate):
    """The family of LTX-Video (HaCohen et al. 2024). Padding is masked.

    Attributes:
        draws: its name.
        pipelines: those whose positions are all drawn.
    """

    classes: tuple[str, ...] = ("LTXVideoTransformer3DModel",)
    draws: str = "LTX-Video"
    pipelines: str = "LTXPipeline or LTXImageToVideoPipeline"

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., num_frames, height, width)``.

        The numbers are those of the sequence's positions. A given frame's timestep is 0.

        Raises:
            RuntimeError: positions of given frames stand in the sequence, too.
        """
        sample, sides = arguments["hidden_states"], ("num_frames", "height", "width")
        frames, height, width = (int(arguments.get(name) or 0) for name in sides)
        if frames * height * width != sample.shape[1]:
            raise RuntimeError(
                f"{self.draws} was called with {sample.shape[1]} positions where num_frames, "
                f"height and width are {frames}, {height} and {width}: other pipelines put frames "
                "that are given beside them, and which are drawn isn't known; record "
                f"{self.pipelines}"
            )
        time = arguments["timestep"]
        return DenoiserCall(
            sample=sample,
            latent=(height, width),
            timestep=time if time.ndim < 2 else time.flatten(1).amax(1),
            states=arguments["encoder_hidden_states"],
            component=component,
            frames=frames,
        )

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        return (Axis((pipe.tokenizer,)),)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: latents are packed."""
        raise ValueError(
            f"previews=True can't be had with {self.draws}, whose latents are packed; leave it out"
        )
