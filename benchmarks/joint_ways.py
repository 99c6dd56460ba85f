"""What is compared in joint attention: blocks, both directions, outputs, refinement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.grounding import (
    Array,
    Case,
    Recorded,
    Way,
    by_layer,
    choose_layers,
    part,
    probed,
    words_of,
)
from benchmarks.toyland_maps import LEVELS
from xattn.maps.daam import to_grid
from xattn.maps.refine import refined
from xattn.records.run import Run
from xattn.toyland.scenes import Scene

Seen = dict[str, list[Tensor]]


@contextmanager
def watched(transformer: Any) -> Iterator[Seen]:
    """Compute each block's joint attention once more from what it was given, densely.

    Yields:
        By name, for each block and call in turn, on the image's grid of queries: "back", the
        text's queries onto the image's keys, (rows, tokens, queries), averaged over heads; and
        "outputs", the products of the image's output vectors with the text's, likewise.
    """
    seen: Seen = {"back": [], "outputs": []}

    def look(attn: Any, args: Any, given: dict[str, Any]) -> None:
        image, text = given["hidden_states"], given["encoder_hidden_states"]
        count = image.shape[1]

        def both(own: Any, added: Any, norms: tuple[Any, Any] | None = None) -> Tensor:
            parts = [own(image).unflatten(-1, (attn.heads, -1))]
            parts.append(added(text).unflatten(-1, (attn.heads, -1)))
            if norms is not None:
                parts = [norm(each) for norm, each in zip(norms, parts, strict=True)]
            return torch.cat(parts, 1).transpose(1, 2)  # (rows, heads, image and text, channels)

        query = both(attn.to_q, attn.add_q_proj, (attn.norm_q, attn.norm_added_q))
        key = both(attn.to_k, attn.add_k_proj, (attn.norm_k, attn.norm_added_k))
        value = both(attn.to_v, attn.add_v_proj)
        probs = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        output = (probs @ value).transpose(1, 2).flatten(2)  # (rows, image and text, channels)
        seen["back"].append(probs[:, :, count:, :count].mean(1))
        seen["outputs"].append(output[:, count:] @ output[:, :count].transpose(1, 2))

    hooks = [
        block.attn.register_forward_pre_hook(look, with_kwargs=True)
        for block in transformer.transformer_blocks
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def read_joint(pipe: Any, scenes: Sequence[Scene]) -> tuple[list[Case], Run]:
    """Pass a batch of scenes through the transformer, and keep the maps of their words.

    Parts: "back", "outputs" (both see `watched`) and "total" (the maps summed over all words of
    the prompt), each (levels, blocks, height, width); "concepts", the outputs' products through a
    softmax over the words of the prompt (Helbling et al. 2025, section 4), likewise; and the heat
    maps "default", "refined", "twice" (refined, then refined again).
    """
    with watched(pipe.transformer) as seen:
        traces = probed(pipe, scenes, ("step", "layer"))
    grid, latent = traces.run.layers[0].grid, traces.run.latent
    back, outputs = (
        to_grid(torch.stack(seen[name]).unflatten(-1, grid), latent)
        .unflatten(0, (len(LEVELS), -1))
        .transpose(1, 2)  # (levels, images, blocks, tokens, height, width)
        for name in ("back", "outputs")
    )
    cases = []
    for image, (one, trace) in enumerate(zip(scenes, traces, strict=True)):
        run, whole = trace.run, by_layer(trace.run)
        where = {p: i for i, p in enumerate(run.positions)}
        words = [token.position for token in run.prompt(0).tokens]
        said = outputs[:, image][:, :, words]
        concepts = (said / said.std((-3, -2, -1), keepdim=True).clamp_min(1e-9)).softmax(2)
        for word, kind, mask in words_of(one):
            (place,) = run.prompt(0).positions(word)
            flowed = trace.heatmap(word, refined=True)
            parts = {
                "back": back[:, image, :, place],
                "outputs": outputs[:, image, :, place],
                "concepts": concepts[:, :, words.index(place)],
                "total": whole[:, :, [where[position] for position in words]].sum(2),
                "default": trace.heatmap(word),
                "refined": flowed,
                "twice": refined(run, torch.tensor(flowed.array)[None], 0)[0],
            }
            arrays = {name: np.asarray(each) for name, each in parts.items()}
            cases.append(Case(one.seed, kind, mask, whole[:, :, where[place]].numpy(), arrays))
    return cases, run


def joint_ways(recorded: Recorded, others: Recorded) -> tuple[dict[str, Way], dict[str, Any]]:
    """Return the compared ways, by name, and what was chosen on other scenes."""
    layers, picked = recorded.layers, list(choose_layers(others))
    blocks = range(len(layers))
    found: dict[str, Way] = {
        "default": part("default"),
        "image to text, blocks chosen on other scenes": lambda c: c.maps[:, picked].mean((0, 1)),
        "refined (along the image's attention to itself)": part("refined"),
        "refined twice": part("twice"),
        "share among the words": lambda c: (
            c.maps.mean((0, 1)) / np.maximum(c.parts["total"].mean((0, 1)), 1e-9)
        ),
        "text to image": _mean("back", blocks),
        "both directions, geometric mean": lambda c: np.sqrt(
            np.maximum(c.maps.mean((0, 1)) * c.parts["back"].mean((0, 1)), 0)
        ),
        "outputs' products": _mean("outputs", blocks),
        "outputs' products, softmax over the words": _mean("concepts", blocks),
    }
    for n in blocks:
        found[f"image to text, block {n}"] = lambda c, n=n: c.maps[:, n].mean(0)  # type: ignore[misc]
        found[f"text to image, block {n}"] = _mean("back", [n])
        found[f"outputs, softmax over the words, block {n}"] = _mean("concepts", [n])
    for i, level in enumerate(sorted(LEVELS, reverse=True)):
        found[f"noise level {level}"] = lambda c, i=i: c.maps[i].mean(0)  # type: ignore[misc]
    return found, {"chosen layers": [layers[i].name for i in picked]}


def _mean(name: str, blocks: Sequence[int]) -> Callable[[Case], Array]:
    return lambda case: _raised(case.parts[name][:, list(blocks)].mean((0, 1)))


def _raised(heat: Array) -> Array:
    """Return a map that begins at zero: products may be negative, and thresholds are shares."""
    raised: Array = heat - heat.min()
    return raised
