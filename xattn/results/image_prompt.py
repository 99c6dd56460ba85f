"""What text and image prompt give to each place, from an IP-Adapter's recorded attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from xattn.maps import daam, select
from xattn.records.run import LayerFilter, Run
from xattn.results.heatmap import HeatMap
from xattn.views import colours, sheets

TEXT = "text"


@dataclass(frozen=True, eq=False)
class ImagePromptMaps(Mapping[str, HeatMap]):
    """Shares of the text and of each image of an image prompt, at each place.

    ``maps["image"].overlay()`` shows where the image is drawn from; shares of all are 1 together.
    Several images are "image 1", "image 2" ..., in the order of the adapters.

    Attributes:
        maps: the shares by name, "text" first, in [0, 1], on the latent grid.
        tokens: for each image the map of each of its tokens: probabilities, as a word's are.
        adapters: for each image which adapter reads it, from 0.
    """

    maps: Mapping[str, HeatMap]
    tokens: Mapping[str, tuple[HeatMap, ...]]
    adapters: Mapping[str, int]

    def __getitem__(self, name: str) -> HeatMap:
        return self.maps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def shares(self) -> dict[str, float]:
        """The mean share of the text and of each image over the picture."""
        return {name: heat.mean for name, heat in self.maps.items()}

    def __str__(self) -> str:
        room = max(len(name) for name in self.maps)
        return "\n".join(f"{name:<{room}}  {100 * x:5.1f} %" for name, x in self.shares.items())

    def grid(self) -> Image.Image:
        """Draw all shares side by side on the picture, on one scale from 0 to 1."""
        cells = [colours.overlay(heat.array, heat.picture, top=1.0) for heat in self.maps.values()]
        return sheets.table([cells], [""], list(self.maps))

    def _repr_png_(self) -> bytes:
        return sheets.png(self.grid())


def image_prompt_maps(
    run: Run,
    image: int,
    *,
    steps: select.Steps = None,
    layers: LayerFilter = None,
    heads: select.Heads = None,
) -> ImagePromptMaps:
    """Return the maps of a run's image prompt.

    Raises:
        ValueError: none was recorded, or a selection is not in the recording.
    """
    if not run.image_prompt:
        raise ValueError(
            "no image prompt was recorded: draw with an IP-Adapter, and record with words='image'"
        )
    where: dict[str, Any] = {"steps": steps, "layers": layers, "heads": heads}
    sources = run.image_prompt["share"].info["image prompt"]
    names = ["image" if len(sources) == 1 else f"image {n}" for n in range(1, len(sources) + 1)]
    picture = run.images[image] if image < len(run.images) else None

    def heat(array: torch.Tensor, name: str) -> HeatMap:
        return HeatMap(array.numpy(), name, {"image": image}, picture)

    given = _mean_shares(run.image_prompt["share"], image, where)
    stack = [(1 - given.sum(0)).clamp(0, 1), *given]
    maps = {name: heat(each, name) for name, each in zip([TEXT, *names], stack, strict=True)}
    own = run.image_prompt["attention"]
    every = daam.token_maps(own, own.positions, image, **where)
    parts = every.split([count for _, _, count in sources])
    tokens = {
        name: tuple(heat(each, f"{name}, token {n}") for n, each in enumerate(part))
        for name, part in zip(names, parts, strict=True)
    }
    adapters = {name: source[0] for name, source in zip(names, sources, strict=True)}
    return ImagePromptMaps(maps, tokens, adapters)


def _mean_shares(run: Run, image: int, where: Mapping[str, Any]) -> torch.Tensor:
    """Return each image's mean share over steps, layers and heads, (images, height, width)."""
    summed = daam.token_maps(run, run.positions, image, **where)
    count = run.done if "step" not in run.keep else len(select.step_indices(run, where["steps"]))
    return (summed / count).clamp_max(1)
