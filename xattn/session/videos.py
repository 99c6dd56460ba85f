"""Pictures of a video: the frames that its maps' frames stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def still_frames(videos: Any, frames: int) -> list[Image.Image]:
    """Return for each video the pictures of some of its frames, spread over it evenly.

    An autoencoder of videos makes the first frame of the first latent frame, and of each later one
    several more: so the last of them is taken for each.

    Args:
        videos: what a pipeline's video processor returned: an array (videos, frames, height, width,
            3) or a tensor (videos, frames, 3, height, width), in [0, 1], or lists of pictures.
        frames: how many frames the maps have.
    """
    return [
        _picture(video[n])
        for video in videos
        for n in np.linspace(0, len(video) - 1, frames).round().astype(int).tolist()
    ]


def _picture(frame: Any) -> Image.Image:
    if isinstance(frame, Image.Image):
        return frame
    array = frame if isinstance(frame, np.ndarray) else frame.float().movedim(0, -1).cpu().numpy()
    return Image.fromarray((array * 255).round().clip(0, 255).astype(np.uint8))
