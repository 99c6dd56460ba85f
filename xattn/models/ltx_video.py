"""LTX-Video: T5's words in cross-attention of its own, latents of a video as one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.joint import Layout
from xattn.models.separate import Separate, drawn_time


@dataclass(frozen=True)
class LTXVideo(Separate):
    """The family of LTX-Video (HaCohen et al. 2024). Padding is masked.

    Given frames that aren't the video's first stand in front of its positions.

    Attributes:
        draws: its name.
        pipelines: those whose positions are known.
    """

    classes: tuple[str, ...] = ("LTXVideoTransformer3DModel",)
    draws: str = "LTX-Video"
    pipelines: str = "LTXPipeline, LTXImageToVideoPipeline or LTXConditionPipeline"

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., num_frames, height, width)``.

        The numbers are those of the video's positions. A given frame's timestep is lower.

        Raises:
            RuntimeError: which positions are the video's isn't known.
        """
        sample = arguments["hidden_states"]
        start, (frames, height, width) = self._drawn(arguments)
        own, whole = slice(start, start + frames * height * width), slice(0, sample.shape[1])
        if own.start == own.stop or not self._fits(own, whole):
            raise RuntimeError(
                f"{self.draws} was called with {whole.stop} positions where num_frames, height "
                f"and width are {frames}, {height} and {width}, from {start} on: which are the "
                f"video's isn't known; record {self.pipelines}"
            )
        return DenoiserCall(
            sample=sample,
            latent=(height, width),
            timestep=drawn_time(arguments["timestep"]),
            states=arguments["encoder_hidden_states"],
            component=component,
            layout=None if own == whole else Layout(whole.stop, slice(0, 0), own, slice(0, 0)),
            frames=frames,
        )

    def _drawn(self, arguments: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
        """Return where the video's positions begin, and how many frames, rows and columns."""
        sides = tuple(int(arguments.get(n) or 0) for n in ("num_frames", "height", "width"))
        coords = arguments.get("video_coords")
        return _laid(coords) if coords is not None and not any(sides) else (0, sides)

    def _fits(self, own: slice, whole: slice) -> bool:
        """Return whether a sequence can have a video's positions there: at its end."""
        return bool(own.stop == whole.stop)

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


# reading coordinates waits for the device: once for each run
_laid_out: Any = WeakIdKeyDictionary()


def _laid(coords: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return where a video begins among coordinates (rows, 3, positions), and its sides.

    Its first frame alone is at time 0.
    """
    if coords not in _laid_out:
        start = int((coords[0, 0] == 0).int().argmax())
        sides = (int(axis[start:].unique().numel()) for axis in coords[0])
        _laid_out[coords] = start, tuple(sides)
    found: tuple[int, tuple[int, ...]] = _laid_out[coords]
    return found
