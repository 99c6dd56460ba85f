"""Directions of concepts among the outputs of cross-attention layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xattn.maps import select
from xattn.records.run import LayerFilter, Run

_TINY = 1e-12


def similarity(
    run: Run, directions: Mapping[str, Tensor], image: int, layers: LayerFilter = None
) -> Tensor:
    """Return the cosine of each place's output with a direction, (height, width) in [-1, 1].

    Each layer's outputs less their mean over the picture; the mean of the layers' cosines on the
    latent grid.
    """
    names = _layers(run, directions, layers)
    total = torch.zeros(run.latent)
    for name in names:
        outputs = _centred(run, name, image)
        cosine = torch.einsum("chw,c->hw", outputs, directions[name])
        cosine /= outputs.norm(dim=0).clamp_min(_TINY)
        sized = torch.nn.functional.interpolate(
            cosine[None, None], run.latent, mode="bilinear", align_corners=False
        )
        total += sized[0, 0] / len(names)
    return total


def explained(
    run: Run, directions: Mapping[str, Tensor], image: int, layers: LayerFilter = "all"
) -> dict[str, float]:
    """Return each layer's share of the outputs' variance over places along a direction."""
    found = {}
    for name in _layers(run, directions, layers):
        outputs = _centred(run, name, image)
        along = torch.einsum("chw,c->hw", outputs, directions[name])
        found[name] = float(along.square().sum() / outputs.square().sum().clamp_min(_TINY))
    return found


def _layers(run: Run, directions: Mapping[str, Tensor], layers: LayerFilter) -> list[str]:
    """Return the names of the chosen layers.

    Raises:
        ValueError: no outputs were kept, or the directions are another model's.
    """
    if not run.outputs:
        raise ValueError("no outputs were kept: record or probe with outputs=True")
    names = [
        name
        for n in select.layers_of(run, layers)[0]
        for name in run.layers[n].members
        if name in run.outputs
    ]
    fitting = [
        name
        for name in names
        if name in directions and len(directions[name]) == run.outputs[name].shape[1]
    ]
    if not fitting:
        raise ValueError(
            "the vector's layers are not those of the recording: make it with the pipeline that "
            "was recorded"
        )
    return fitting


def _centred(run: Run, name: str, image: int) -> Tensor:
    """Return a layer's outputs less their mean over the picture, (channels, height, width)."""
    outputs = run.outputs[name][image].float()
    return outputs - outputs.mean((1, 2), keepdim=True)
