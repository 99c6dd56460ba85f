"""A judge of Toyland pictures: a small network classifying each pixel.

It is trained only on drawn scenes with seeds used nowhere else, including held-out pairs; training
pictures are blurred, noised and tinted, so it does not depend on crispness. Colours are read as
the nearest palette colour inside the regions it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import nn

from xattn.toyland.drawing import GLASS, WOOD
from xattn.toyland.scenes import Pairs, Scene, scene
from xattn.toyland.world import COLOURS, NOUNS, PALETTE, ground_colour

CLASSES = ("sky", "ground", *NOUNS)
FIRST_SEED = 20_000_000
SMALLEST = 100  # pixels of 128 x 128; the smallest objects have about 400


def _block(inside: int, outside: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


class Judge(nn.Module):
    """Pictures `(batch, 3, 128, 128)` in [-1, 1] -> class scores `(batch, 10, 64, 64)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _block(3, 24, stride=2)
        self.second = nn.Sequential(_block(24, 32, stride=2), _block(32, 48))
        self.third = nn.Sequential(
            _block(48, 64, stride=2),
            _block(64, 64, dilation=2),
            _block(64, 64, dilation=4),
            _block(64, 64),
        )
        self.join = _block(64 + 48, 48)
        self.out = nn.Conv2d(48 + 24, len(CLASSES), 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the class scores of each pixel at half size."""
        half = self.first(pixels)  # (batch, 24, 64, 64)
        quarter = self.second(half)  # (batch, 48, 32, 32)
        eighth = self.third(quarter)  # (batch, 64, 16, 16)
        joined = self.join(torch.cat([_double(eighth), quarter], dim=1))
        scores: torch.Tensor = self.out(torch.cat([_double(joined), half], dim=1))
        return scores


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def truth(drawn: Scene) -> npt.NDArray[np.int64]:
    """Return the class of each pixel at half size, `(64, 64)`."""
    labels = np.zeros(drawn.sky_mask.shape, dtype=np.int64)
    labels[drawn.ground_mask] = 1
    for thing, mask in zip(drawn.things, drawn.thing_masks, strict=True):
        labels[mask] = CLASSES.index(thing.noun)
    return labels[1::2, 1::2]


def _worsen(pixels: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Blur, tint and noise pictures, as much as an imperfect model might."""
    small = F.interpolate(pixels, scale_factor=0.5, mode="area")
    blurred = F.interpolate(small, scale_factor=2.0, mode="bilinear")
    count = len(pixels)
    mix = torch.rand(count, 1, 1, 1, generator=random)
    tint = 0.15 * torch.randn(count, 3, 1, 1, generator=random)
    noise = 0.1 * torch.rand(count, 1, 1, 1, generator=random)
    grain = torch.randn(pixels.shape, generator=random)
    return mix * pixels + (1 - mix) * blurred + tint + noise * grain


def train_judge(path: Path, *, scenes: int = 3000, steps: int = 900) -> Judge:
    """Train the judge, two to five minutes on two cores, or read it from `path`.

    Every second scene is a hard one, every third shows held-out pairs.
    """
    judge = Judge()
    if path.exists():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    kinds: tuple[Pairs, ...] = ("training", "training", "held out")
    drawn = [scene(FIRST_SEED + n, kinds[n % 3], hard=n % 2 == 1) for n in range(scenes)]
    pixels = to_pixels([one.image for one in drawn])
    labels = torch.from_numpy(np.stack([truth(one) for one in drawn]))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(scenes, (16,), generator=random)
        loss = F.cross_entropy(judge(_worsen(pixels[chosen], random)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


@dataclass(frozen=True)
class Seen:
    """One object that the judge found."""

    noun: str
    colour: str
    area: int
    x: float


@dataclass(frozen=True)
class Verdict:
    """What the judge found in a picture: its objects, largest first, and the ground's colour."""

    things: tuple[Seen, ...]
    ground: str
    dark: bool
    """Whether it is night: the sky is dark."""


def nearest(pixels: npt.NDArray[np.uint8], palette: dict[str, tuple[int, int, int]]) -> str:
    """Return the palette colour nearest to most pixels `(count, 3)`, or ""."""
    names = list(palette)
    colours = np.array([palette[name] for name in names], dtype=float)
    distances = np.square(pixels[:, None, :].astype(float) - colours[None]).sum(-1)
    counts = np.bincount(distances.argmin(1), minlength=len(names))
    ranked = [names[index] for index in counts.argsort()[::-1] if counts[index]]
    return next((name for name in ranked if not name.startswith("-")), "")


def _object_palette() -> dict[str, tuple[int, int, int]]:
    return {**{name: PALETTE[name] for name in COLOURS}, "-glass": GLASS, "-wood": WOOD}


@torch.no_grad()
def verdicts(judge: Judge, images: Sequence[Image.Image]) -> list[Verdict]:
    """Judge pictures, many at once."""
    found = []
    for start in range(0, len(images), 32):
        batch = images[start : start + 32]
        labels = judge(to_pixels(batch)).argmax(1)  # (batch, 64, 64)
        full = labels.numpy().repeat(2, axis=1).repeat(2, axis=2)
        found += [
            _verdict(np.asarray(image.convert("RGB")), classes)
            for image, classes in zip(batch, full, strict=True)
        ]
    return found


def _verdict(pixels: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]) -> Verdict:
    sky = pixels[classes == 0]
    dark = len(sky) > 0 and float(sky.mean()) < 128
    ground = pixels[classes == 1]
    tones = {name: ground_colour(name, dark) for name in PALETTE}
    things = []
    blobs, count = ndimage.label(classes > 1)
    for blob in range(1, count + 1):
        inside = blobs == blob
        if inside.sum() < SMALLEST:
            continue
        index = int(np.bincount(classes[inside]).argmax())
        core = ndimage.binary_erosion(inside, iterations=2)  # outlines and soft edges left out
        colour = nearest(pixels[core if core.sum() > 40 else inside], _object_palette())
        x = float(np.nonzero(inside)[1].mean())
        things.append(Seen(CLASSES[index], colour, int(inside.sum()), x))
    things.sort(key=lambda seen: -seen.area)
    return Verdict(tuple(things), nearest(ground, tones) if len(ground) else "", dark)
