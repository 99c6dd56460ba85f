"""The names of a run's images: pictures, or a video's frames."""

from __future__ import annotations

from xattn.records.run import Run


def name(run: Run, index: int) -> str:
    """Return what an image of a run is called: an image, or a video's frame."""
    if run.frames == 1:
        return f"image {index}"
    video, frame = divmod(index, run.frames)
    return f"video {video}, frame {frame}" if len(run.prompt_of) > run.frames else f"frame {frame}"


def count(run: Run) -> str:
    """Return how many images there are, or videos and their frames."""
    images = len(run.prompt_of) // run.frames
    kind = "image" if run.frames == 1 else "video"
    frames = "" if run.frames == 1 else f" of {run.frames} frames"
    return f"{images} {kind}{'s' * (images > 1)}{frames}"
