"""Pictures of a training's progress: what it draws now and then, and its losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SHEET = (
    "a red car on a green lawn",
    "a red car on a green lawn at night",
    "a blue car on a green lawn",
    "a white boat and a purple star on a blue sea",
    "a small yellow star on the left of a black road",
    "a large orange tree on a yellow beach",
    "a black house and a pink fish on a white beach",
    "a blue mug on a grey road",
    "a car on a green lawn",
    "a green boat on a blue sea at night",
    "a yellow house on the right of a green lawn",
    "a purple tree and a white mug on a yellow beach",
)
"""Captions that the training draws, to be looked at."""

HARD_SHEET = (
    "a red car and a small blue car and a green tree on a yellow beach",
    "a purple boat and a white boat and a pink fish on a blue sea",
    "a black mug on the right and a small orange house on the left and a red mug on a green lawn",
    "a small white star and a blue ball and a small pink star on a grey road at night",
)
"""The same of hard scenes."""


def tile(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Lay pictures of one size out in rows."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def plot_losses(folder: Path, target: Path) -> None:
    """Draw the loss curves of the trainings in a folder from their logs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = [p for name in ("autoencoder", "denoiser") if (p := folder / f"{name}.jsonl").exists()]
    figure, axes = plt.subplots(
        1, len(paths), figsize=(4.5 * len(paths), 3), layout="constrained", squeeze=False
    )
    for axis, path in zip(axes[0], paths, strict=True):
        records = {r["step"]: r["loss"] for r in map(json.loads, path.read_text().splitlines())}
        axis.plot(list(records), list(records.values()), linewidth=1)
        axis.set(title=path.stem, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=100)
    plt.close(figure)
