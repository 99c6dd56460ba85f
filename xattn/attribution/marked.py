"""Pictures whose words have masks: what heads are compared with.

A folder of such pictures holds ``captions.jsonl``, a JSON object in each line:

    {"image": "0001.png", "prompt": "a red car on a lawn",
     "masks": {"red": "0001-car.png", "car": "0001-car.png", "lawn": "0001-lawn.png"}}

Masks are pictures of any size, white where the word is seen. With COCO's own JSON of instances a
picture's prompt is made of the names of its categories: ``from_coco``.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Marked:
    """A picture, a text for it, and where the text's words are seen.

    Attributes:
        image: the picture.
        prompt: the text.
        masks: by word, bool (height, width).
    """

    image: Image.Image
    prompt: str
    masks: Mapping[str, Mask]


def marked(scenes: Any) -> list[Marked]:
    """Return pictures with masks.

    Args:
        scenes: scenes of Toyland, ``Marked`` pictures, or a folder with a ``captions.jsonl``.

    Raises:
        ValueError: there are none, or the folder has no such file.
    """
    if isinstance(scenes, str | os.PathLike):
        return from_folder(scenes)
    found = [_one(each) for each in scenes]
    if not found:
        raise ValueError("scenes is empty: give pictures whose words have masks")
    return found


def _one(scene: Any) -> Marked:
    if isinstance(scene, Marked):
        return scene
    if not all(hasattr(scene, name) for name in ("image", "caption", "masks")):
        raise ValueError(
            f"scenes: {type(scene).__name__} has no image, caption and masks; give scenes of "
            "xattn.toyland, or xattn.attribution.marked.Marked(image, prompt, masks)"
        )
    return Marked(scene.image, scene.caption, scene.masks)


def from_folder(folder: str | os.PathLike[str]) -> list[Marked]:
    """Read a folder with a ``captions.jsonl``.

    Raises:
        ValueError: there is no such file, or a line has not what it takes.
    """
    path = Path(folder).expanduser()
    index = path / "captions.jsonl"
    if not index.is_file():
        raise ValueError(f"scenes={os.fspath(folder)!r} has no captions.jsonl")
    found = []
    for number, line in enumerate(index.read_text("utf-8").splitlines(), start=1):
        try:
            given = json.loads(line)
            masks = {word: _mask(path / name) for word, name in given["masks"].items()}
            found.append(Marked(_picture(path / given["image"]), given["prompt"], masks))
        except (KeyError, TypeError, AttributeError, OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{index}, line {number}: {type(error).__name__} {error}") from error
    return found


def from_coco(annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> list[Marked]:
    """Read COCO's JSON of instances; a picture without any is left out.

    Masks are polygons, or run lengths down the columns, as lists or as COCO packs them into text.

    Args:
        annotations: the JSON file.
        images: the folder of its pictures.
    """
    data = json.loads(Path(annotations).expanduser().read_text("utf-8"))
    names = {each["id"]: each["name"] for each in data["categories"]}
    pieces: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for each in data["annotations"]:
        pieces[each["image_id"]][names[each["category_id"]]].append(each["segmentation"])
    folder, found = Path(images).expanduser(), []
    for each in data["images"]:
        own = pieces.get(each["id"])
        if own:
            size = (int(each["width"]), int(each["height"]))
            masks = {
                name: np.logical_or.reduce([_region(one, size) for one in several])
                for name, several in own.items()
            }
            prompt = " and ".join(f"a {name}" for name in masks)
            found.append(Marked(_picture(folder / each["file_name"]), prompt, masks))
    return found


def _region(segmentation: Any, size: tuple[int, int]) -> Mask:
    """Return the mask of an annotation, (height, width)."""
    if isinstance(segmentation, list):
        return _drawn(segmentation, size)
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    lengths = run_lengths(counts) if isinstance(counts, str) else counts
    values = np.arange(len(lengths)) % 2 == 1  # the first run is outside
    return np.repeat(values, lengths).reshape(width, height).T


def run_lengths(packed: str) -> list[int]:
    """Return the run lengths that COCO packs into text.

    Each number is cut into groups of five bits, the lowest first, a character each (from "0" on),
    whose sixth bit says that more follow; from the fourth number on it is the difference from the
    one before last.
    """
    found: list[int] = []
    number = shift = 0
    for letter in packed:
        bits = ord(letter) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        number -= (1 << shift) if bits & 16 else 0  # the last group has the sign
        found.append(number + (found[-2] if len(found) > 2 else 0))
        number = shift = 0
    return found


def _drawn(polygons: Iterable[Sequence[float]], size: tuple[int, int]) -> Mask:
    canvas = Image.new("1", size)
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon([(x, y) for x, y in zip(polygon[::2], polygon[1::2], strict=True)], fill=1)
    return np.asarray(canvas)


def _mask(path: Path) -> Mask:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L")) > 127


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")
