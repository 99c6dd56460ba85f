"""What is compared on a UNet: layers, heads, noise levels, and ways to combine their maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.grounding import (
    Array,
    Case,
    Recorded,
    Way,
    by_layer,
    choose_layers,
    enlarged,
    part,
    probed,
    words_of,
    worth,
)
from benchmarks.toyland_maps import LEVELS
from xattn.maps.daam import to_grid
from xattn.maps.refine import refined
from xattn.records.run import Layer, Run
from xattn.toyland.scenes import Scene


@torch.no_grad()
def read_unet(pipe: Any, scenes: Sequence[Scene]) -> tuple[list[Case], Run]:
    """Pass a batch of scenes through the UNet, and keep the maps of their words.

    Parts: "heads" of all layers, averaged over levels, (heads, height, width); "total", the maps
    summed over all words of the prompt; and the heat maps "default", "refined", "twice" (refined,
    then refined again), "all" (layers).
    """
    cases = []
    for one, trace in zip(scenes, probed(pipe, scenes, ("step", "layer", "head")), strict=True):
        run, whole = trace.run, by_layer(trace.run)
        single = [to_grid(run.maps(i)[:, 0], run.latent).mean(0) for i in range(len(run.layers))]
        heads = torch.cat(single)  # (heads, tokens, height, width)
        where = {p: i for i, p in enumerate(run.positions)}
        tokens = [where[t.position] for t in run.prompt(0).tokens]
        for word, kind, mask in words_of(one):
            (place,) = run.prompt(0).positions(word)
            flowed = trace.heatmap(word, refined=True)
            parts = {
                "heads": heads[:, where[place]],
                "total": whole[:, :, tokens].sum(2),
                "default": trace.heatmap(word),
                "refined": flowed,
                "twice": refined(run, torch.tensor(flowed.array)[None], 0)[0],
                "all": trace.heatmap(word, layers="all"),
            }
            arrays = {name: np.asarray(each) for name, each in parts.items()}
            cases.append(Case(one.seed, kind, mask, whole[:, :, where[place]].numpy(), arrays))
    return cases, run


# -- ways to combine recorded maps into one


def _share(part: Array, whole: Array) -> Array:
    share: Array = part / np.maximum(whole, 1e-9)
    return share


def _mean(layers: Sequence[int]) -> Way:
    return lambda case: case.maps[:, list(layers)].mean((0, 1))


def _at(level: int) -> Way:
    return lambda case: case.maps[level].mean(0)


def _scaled(maps: Array) -> Array:
    scaled: Array = maps / np.maximum(maps.max((-2, -1), keepdims=True), 1e-9)
    return scaled


def unet_ways(recorded: Recorded, others: Recorded) -> tuple[dict[str, Way], dict[str, Any]]:
    """Return the compared ways, by name, and what was chosen on other scenes."""
    layers, picked = recorded.layers, list(choose_layers(others))
    heads = choose_heads(others)
    side = [i for i, x in enumerate(layers) if x.area == max(y.area for y in layers)]
    middle = [i for i, x in enumerate(layers) if "mid_block" in x.name]
    ups = [i for i, x in enumerate(layers) if x.name.startswith("up_blocks")]
    rest = [i for i in range(len(layers)) if i not in middle]
    found: dict[str, Way] = {
        "default": part("default"),
        "all layers": part("all"),
        "prompt-to-prompt's average at 16 x 16": _mean(side),
        "no middle block": _mean(rest),
        "up blocks": _mean(ups),
        "layers chosen on other scenes": _mean(picked),
        "heads chosen on other scenes": lambda c: c.parts["heads"][list(heads)].mean(0),
        "refined (along self-attention)": part("refined"),
        "refined twice": part("twice"),
        "share among the words": lambda c: _share(
            c.maps.mean((0, 1)), c.parts["total"].mean((0, 1))
        ),
        "share among the words, by layer": lambda c: _share(c.maps, c.parts["total"]).mean((0, 1)),
        "chosen layers, share among the words": lambda c: _share(
            c.maps[:, picked].mean((0, 1)), c.parts["total"][:, picked].mean((0, 1))
        ),
        "each layer scaled to 1": lambda c: _scaled(c.maps.mean(0)).mean(0),
        "each step and layer scaled to 1": lambda c: _scaled(c.maps).mean((0, 1)),
        "geometric mean of the layers": lambda c: np.exp(
            np.log(np.maximum(c.maps.mean(0), 1e-6)).mean(0)
        ),
        "squares": lambda c: np.square(c.maps).mean((0, 1)),
    }
    for i, layer in enumerate(layers):
        name = layer.name.replace(".transformer_blocks.0.attn2", "").replace(".attentions", "")
        height, width = layer.grid
        found[f"layer {name} ({height} x {width})"] = _mean([i])
    for i, level in enumerate(sorted(LEVELS, reverse=True)):
        found[f"noise level {level}"] = _at(i)
    choices = {
        "chosen layers": [layers[i].name for i in picked],
        "chosen heads": [_head_name(layers, head) for head in heads],
    }
    return found, choices


def choose_heads(recorded: Recorded) -> tuple[int, ...]:
    """Choose heads one by one, each the most helpful for the words of these scenes."""
    cases = [c for c in recorded.cases if c.kind in ("noun", "object colour")]
    masks = np.stack([case.mask for case in cases])[:, 2::4, 2::4]
    by_head = np.stack([case.parts["heads"] for case in cases], axis=1)  # (heads, cases, 16, 16)
    each = np.stack([enlarged(maps, masks.shape[1:]) for maps in by_head])
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < len(each):
        left = [head for head in range(len(each)) if head not in chosen]
        worths = {head: worth(each[[*chosen, head]].mean(0), masks) for head in left}
        head = max(worths, key=worths.__getitem__)
        if worths[head] <= best:
            break
        best = worths[head]
        chosen.append(head)
    return tuple(sorted(chosen))


def _head_name(layers: Sequence[Layer], head: int) -> str:
    for layer in layers:
        if head < layer.heads:
            return f"{layer.name}, head {head}"
        head -= layer.heads
    raise ValueError(f"there is no head {head} more than these layers have")
