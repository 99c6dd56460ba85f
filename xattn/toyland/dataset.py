"""Draws the training scenes once and keeps them on disk as one array."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .scenes import scene
from .world import SIDE


def _draw(seed: int) -> tuple[npt.NDArray[np.uint8], str]:
    drawn = scene(seed)
    return np.asarray(drawn.image), drawn.caption


def dataset(folder: Path, count: int, workers: int = 2) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Give pictures `(count, 128, 128, 3)` and captions of the seeds from 0 on.

    About 5 ms and 48 KiB each; a second call finds them on disk.
    """
    images_path = folder / f"scenes-{count}.npy"
    captions_path = folder / f"scenes-{count}.json"
    if not captions_path.exists():
        images = np.lib.format.open_memmap(
            images_path, mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3)
        )
        captions = []
        with ProcessPoolExecutor(workers) as pool:
            for index, (image, caption) in enumerate(pool.map(_draw, range(count), chunksize=64)):
                images[index] = image
                captions.append(caption)
        images.flush()
        captions_path.write_text(json.dumps(captions))
    return np.load(images_path, mmap_mode="r"), json.loads(captions_path.read_text())
