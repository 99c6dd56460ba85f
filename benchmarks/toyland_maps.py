"""Does the bundled UNets' attention ground words? Drawn scenes, noised, and their exact masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline

from benchmarks.tally import interval
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import SIDE

CHOICE_SEED, GROUND_SEED = 12_000_000, 13_000_000
LEVELS = (100, 300, 500, 700, 900)
THRESHOLDS = np.linspace(0.1, 0.9, 33)

Array = npt.NDArray[np.float64]


class Recorder:
    """An attention processor that keeps the mean over heads of its probabilities."""

    def __init__(self) -> None:
        self.probs = torch.empty(0)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute attention like the model."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probs = attn.get_attention_scores(query, key, attention_mask)  # (batch * heads, q, tokens)
        self.probs = probs.unflatten(0, (-1, attn.heads)).mean(1)  # (batch, queries, tokens)
        made: torch.Tensor = attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probs, value)))
        return made


@dataclass(frozen=True)
class WordMaps:
    """The maps of one word of one scene: `(levels, layers, 16, 16)`, and its true mask."""

    scene: int
    kind: str
    objects: int
    maps: Array
    mask: npt.NDArray[np.bool_]


def kind_of(word: str) -> str:
    """Return the class of a word with a mask."""
    from xattn.toyland.world import GROUNDS, NOUNS, PALETTE

    if word in NOUNS:
        return "noun"
    if word in GROUNDS:
        return "ground"
    if word in PALETTE:
        return "colour"
    return word if word == "night" else "size or place"


@torch.no_grad()
def record(
    pipe: StableDiffusionPipeline, scenes: Sequence[Scene]
) -> tuple[list[WordMaps], list[str]]:
    """Pass scenes once through the UNet at each noise level, and keep each word's maps."""
    layers = sorted(name for name in pipe.unet.attn_processors if ".attn2." in name)
    before = dict(pipe.unet.attn_processors)
    recorders = {name: Recorder() for name in layers}
    words: list[WordMaps] = []
    pipe.unet.set_attn_processor({**before, **recorders})
    try:
        for one in scenes:
            ids = pipe.tokenizer(one.caption, padding="max_length", return_tensors="pt").input_ids
            text = pipe.text_encoder(ids)[0].expand(len(LEVELS), -1, -1)
            pixels = pipe.image_processor.preprocess(one.image)
            clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
            levels = torch.tensor(LEVELS)
            random = torch.Generator().manual_seed(one.seed)
            noise = torch.randn((len(LEVELS), *clean.shape[1:]), generator=random)
            noisy = pipe.scheduler.add_noise(clean.expand_as(noise), noise, levels)
            pipe.unet(noisy, levels, text)
            grids = []
            for name in layers:
                probs = recorders[name].probs  # (levels, queries, tokens)
                side = round(probs.shape[1] ** 0.5)
                maps = probs.transpose(1, 2).unflatten(2, (side, side))
                grids.append(
                    torch.nn.functional.interpolate(
                        maps, size=(16, 16), mode="bicubic", align_corners=False
                    ).clamp_min(0)
                )
            stacked = torch.stack(grids, dim=1)  # (levels, layers, tokens, 16, 16)
            for position, word in enumerate(one.words, start=1):
                if word.about is None:
                    continue
                kind = kind_of(word.text)
                if kind == "colour" and word.about == "ground":
                    kind = "ground colour"
                elif kind == "colour":
                    kind = "object colour"
                own = stacked[:, :, position].double().numpy()
                words.append(WordMaps(one.seed, kind, len(one.things), own, one.masks[word.text]))
    finally:
        pipe.unet.set_attn_processor(before)
    return words, [name.removesuffix(".processor") for name in layers]


def enlarge(maps: Array) -> Array:
    """Resize maps `(count, 16, 16)` to pixels, bicubic, clamped at 0."""
    big = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(SIDE, SIDE), mode="bicubic", align_corners=False
    )
    return big[:, 0].clamp_min(0).numpy()


@dataclass(frozen=True)
class Choice:
    """The levels and layers of a heat map, and the threshold of its mask."""

    levels: tuple[int, ...]
    layers: tuple[int, ...]
    threshold: float = 0.4


def heat(words: Sequence[WordMaps], choice: Choice) -> Array:
    """Return the heat map of each word in pixels, `(count, 128, 128)`."""
    picked = [word.maps[np.ix_(choice.levels, choice.layers)].mean((0, 1)) for word in words]
    return enlarge(np.stack(picked))


def points(heats: Array, words: Sequence[WordMaps]) -> list[bool]:
    """Return for each word whether its maximum lies inside its mask."""
    return [bool(word.mask.flat[one.argmax()]) for one, word in zip(heats, words, strict=True)]


def ious(heats: Array, words: Sequence[WordMaps], threshold: float) -> list[float]:
    """Return each word's IoU, thresholded at a share of its maximum."""
    found = heats >= threshold * heats.max((1, 2), keepdims=True)
    masks = np.stack([word.mask for word in words])
    return list((found & masks).sum((1, 2)) / (found | masks).sum((1, 2)))


def best_threshold(
    heats: Array, words: Sequence[WordMaps], thresholds: Array = THRESHOLDS
) -> tuple[float, float]:
    """Return the threshold with the highest mean IoU, and this IoU."""
    means = [float(np.mean(ious(heats, words, threshold))) for threshold in thresholds]
    best = int(np.argmax(means))
    return float(thresholds[best]), means[best]


def of_kind(words: Iterable[WordMaps], *kinds: str) -> list[WordMaps]:
    return [word for word in words if word.kind in kinds]


def choose(words: Sequence[WordMaps], layers: int) -> Choice:
    """Choose the layers, over all levels, with the best score for nouns and object colours."""
    nouns, colours = of_kind(words, "noun"), of_kind(words, "object colour")
    levels = tuple(range(len(LEVELS)))
    subsets = [
        subset
        for size in range(1, layers + 1)
        for subset in itertools.combinations(range(layers), size)
    ]

    def score(subset: tuple[int, ...]) -> tuple[float, float]:
        choice = Choice(levels, subset)
        heats = heat(nouns, choice)
        threshold, iou = best_threshold(heats, nouns, THRESHOLDS[::4])
        pointed = float(np.mean(points(heats, nouns)))
        coloured = float(np.mean(points(heat(colours, choice), colours)))
        return pointed + iou + coloured, threshold

    scores = {subset: score(subset) for subset in subsets}
    best = max(scores, key=lambda subset: scores[subset][0])
    return Choice(levels, best, scores[best][1])


def measure_grounding(pipe: StableDiffusionPipeline, count: int) -> dict[str, Any]:
    """Choose on some scenes, measure on others; by class of word, level and layer."""
    chosen_on, layers = record(pipe, [scene(CHOICE_SEED + n) for n in range(count)])
    words, _ = record(pipe, [scene(GROUND_SEED + n) for n in range(count)])
    every = tuple(range(len(LEVELS)))
    choices = {
        "chosen layers": choose(chosen_on, len(layers)),
        "all layers": Choice(every, tuple(range(len(layers)))),
    }
    kinds = sorted({word.kind for word in words})
    result: dict[str, Any] = {"layers": layers, "levels": list(LEVELS), "choices": {}}
    for name, choice in choices.items():
        nouns = of_kind(chosen_on, "noun")
        threshold, _ = best_threshold(heat(nouns, choice), nouns)
        figures: dict[str, Any] = {
            "layers": [layers[index] for index in choice.layers],
            "threshold": threshold,
        }
        for kind in kinds:
            for objects in (None, 1, 2):
                own = [w for w in of_kind(words, kind) if objects in (None, w.objects)]
                if not own:
                    continue
                heats = heat(own, choice)
                owners = [word.scene for word in own]
                label = kind if objects is None else f"{kind}, {objects} in the scene"
                figures[label] = {
                    "pointing": interval([float(p) for p in points(heats, own)], owners),
                    "iou": interval(ious(heats, own, threshold), owners),
                    "chance": float(np.mean([word.mask.mean() for word in own])),
                }
        result["choices"][name] = figures
    result["by level"] = {
        kind: {
            str(level): _point(
                of_kind(words, kind), Choice((index,), choices["chosen layers"].layers)
            )
            for index, level in enumerate(LEVELS)
        }
        for kind in kinds
    }
    result["by layer"] = {
        kind: {
            layer: _point(of_kind(words, kind), Choice(every, (index,)))
            for index, layer in enumerate(layers)
        }
        for kind in kinds
    }
    return result


def _point(words: Sequence[WordMaps], choice: Choice) -> dict[str, float]:
    heats = heat(words, choice)
    return {
        "pointing": float(np.mean(points(heats, words))),
        "iou": best_threshold(heats, words)[1],
    }
