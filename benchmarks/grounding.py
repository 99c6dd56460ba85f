"""Truth of heat maps: words of drawn scenes against their exact masks.

Scenes never seen in training are noised to a few levels and passed once through the UNet inside
``xattn.record``. Thresholds, and layers if chosen, come from other scenes than the scored ones.
Intervals are 95 % bootstrap intervals over scenes; differences to the default heat map are taken
word by word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

import xattn
from benchmarks.toyland import CHOICE_SEED, GROUND_SEED, LEVELS, interval, kind_of
from xattn.maps.daam import to_grid
from xattn.maps.refine import refined
from xattn.records.run import Layer
from xattn.toyland.scenes import Scene, scene

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

THRESHOLDS = np.linspace(0.1, 0.9, 17)
EVERY = "all words"


@dataclass(frozen=True)
class Case:
    """One word of one scene.

    Attributes:
        scene: the scene's seed.
        kind: the word's class.
        mask: its true mask, (128, 128).
        maps: its maps on the latent grid, averaged over heads, (levels, layers, 16, 16).
        heads: the same for every head of every layer, averaged over levels, (heads, 16, 16).
        total: the same, summed over all words of the prompt.
        default: its heat map from ``trace.heatmap``, (16, 16).
        refined: with ``refined=True``.
        twice: refined, then refined again.
        all: with ``layers="all"``.
    """

    scene: int
    kind: str
    mask: Mask
    maps: Array
    heads: Array
    total: Array
    default: Array
    refined: Array
    twice: Array
    all: Array


@dataclass(frozen=True)
class Recorded:
    """The words of some scenes, and the layers of their maps."""

    cases: list[Case]
    layers: tuple[Layer, ...]
    latent: tuple[int, int]


@torch.no_grad()
def record_scenes(pipe: Any, scenes: Sequence[Scene], batch: int = 20) -> Recorded:
    """Pass scenes through the UNet at each noise level, and keep the maps of their words."""
    cases: list[Case] = []
    for start in range(0, len(scenes), batch):
        group = scenes[start : start + batch]
        trace = _trace(pipe, group)
        run = trace.run
        each = [to_grid(run.maps(i), run.latent) for i in range(len(run.layers))]
        whole = torch.stack([maps.mean(2) for maps in each], dim=2)
        # (levels, images, layers, tokens, 16, 16)
        single = torch.cat([maps.mean(0) for maps in each], dim=1)  # (images, heads, tokens, ...)
        for image, one in enumerate(group):
            own = whole[:, image]  # (levels, layers, tokens, 16, 16)
            where = {p: i for i, p in enumerate(run.positions)}
            tokens = [where[t.position] for t in run.prompt(image).tokens]
            total = own[:, :, tokens].sum(2)
            for word in one.words:
                if word.about is None:
                    continue
                (place,) = run.prompt(image).positions(word.text)
                maps = own[:, :, where[place]]
                default = np.asarray(trace.heatmap(word.text, image))
                flowed = trace.heatmap(word.text, image, refined=True)
                twice = refined(run, torch.tensor(flowed.array)[None], image)[0]
                every = np.asarray(trace.heatmap(word.text, image, layers="all"))
                kind, mask = _kind(word.text, word.about), one.masks[word.text]
                heads = single[image, :, where[place]]
                numbers = (maps, heads, total)
                arrays = (*(n.numpy() for n in numbers), default, np.asarray(flowed))
                arrays = (*arrays, twice.numpy(), every)
                cases.append(Case(one.seed, kind, mask, *arrays))
    return Recorded(cases, run.layers, run.latent)


def _trace(pipe: Any, scenes: Sequence[Scene], levels: Sequence[int] = LEVELS) -> xattn.Trace:
    captions = [one.caption for one in scenes]
    ids = pipe.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    text = pipe.text_encoder(ids)[0].to(pipe.unet.dtype)
    pixels = torch.cat([pipe.image_processor.preprocess(one.image) for one in scenes])
    clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    seeds = [torch.Generator().manual_seed(one.seed) for one in scenes]
    unet, tokenizer = pipe.unet, pipe.tokenizer
    options = {"tokenizer": tokenizer, "prompt": captions, "dtype": torch.float32}
    with xattn.record(unet, keep=("step", "layer", "head"), affinity=True, **options) as trace:
        for level in sorted(levels, reverse=True):
            noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in seeds])
            noisy = pipe.scheduler.add_noise(clean, noise, torch.tensor([level]))
            unet(noisy.to(unet.dtype), level, text)
    return trace


def _kind(word: str, about: Any) -> str:
    kind = kind_of(word)
    if kind == "colour":
        return "ground colour" if about == "ground" else "object colour"
    return kind


# -- ways to combine recorded maps into one

Way = Callable[[Case], Array]


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


def ways(recorded: Recorded, chosen: Sequence[int], heads: Sequence[int] = ()) -> dict[str, Way]:
    """Return the compared ways, by name.

    Args:
        recorded: the recorded words.
        chosen: layers chosen on other scenes.
        heads: heads chosen on other scenes, counted through all layers.
    """
    layers, picked = recorded.layers, list(chosen)
    side = [i for i, x in enumerate(layers) if x.area == max(y.area for y in layers)]
    middle = [i for i, x in enumerate(layers) if "mid_block" in x.name]
    ups = [i for i, x in enumerate(layers) if x.name.startswith("up_blocks")]
    rest = [i for i in range(len(layers)) if i not in middle]
    found: dict[str, Way] = {
        "default": lambda c: c.default,
        "all layers": lambda c: c.all,
        "prompt-to-prompt's average at 16 x 16": _mean(side),
        "no middle block": _mean(rest),
        "up blocks": _mean(ups),
        "layers chosen on other scenes": _mean(picked),
        "heads chosen on other scenes": lambda c: c.heads[list(heads)].mean(0),
        "refined (along self-attention)": lambda c: c.refined,
        "refined twice": lambda c: c.twice,
        "share among the words": lambda c: _share(c.maps.mean((0, 1)), c.total.mean((0, 1))),
        "share among the words, by layer": lambda c: _share(c.maps, c.total).mean((0, 1)),
        "chosen layers, share among the words": lambda c: _share(
            c.maps[:, picked].mean((0, 1)), c.total[:, picked].mean((0, 1))
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
    return found


def ceiling(case: Case) -> Array:
    """Return the exact mask on the latent grid: a perfect heat map."""
    mask = torch.from_numpy(case.mask).float()[None, None]
    small: Array = F.interpolate(mask, size=case.default.shape, mode="area")[0, 0].numpy()
    return small


# -- scores


def enlarged(maps: Iterable[Array], size: tuple[int, int]) -> Array:
    """Resize maps to pixels, (count, height, width)."""
    stacked = torch.from_numpy(np.stack(list(maps)).astype(np.float32))
    pixels: Array = to_grid(stacked, size).numpy()
    return pixels


def pointed(heats: Array, masks: Mask) -> Array:
    """Return for each map whether its maximum lies in the mask."""
    peaks = heats.reshape(len(heats), -1).argmax(1)
    hits: Array = masks.reshape(len(masks), -1)[np.arange(len(peaks)), peaks]
    return hits.astype(np.float32)


def ious(heats: Array, masks: Mask, threshold: float) -> Array:
    """Return each map's IoU, thresholded at a share of its maximum."""
    found = heats >= threshold * heats.max((1, 2), keepdims=True)
    both = (found & masks).sum((1, 2))
    shares: Array = both / np.maximum((found | masks).sum((1, 2)), 1)
    return shares


@dataclass(frozen=True)
class Score:
    """One way's scores, word by word, in the order of the cases."""

    points: Array
    ious: Array


def score(way: Way, cases: Sequence[Case], others: Sequence[Case]) -> Score:
    """Score a way; the threshold of each class of words is chosen on other scenes."""
    points, overlaps = np.zeros(len(cases), np.float32), np.zeros(len(cases), np.float32)
    for kind in sorted({case.kind for case in cases}):
        threshold = _threshold(way, [case for case in others if case.kind == kind])
        where = [i for i, case in enumerate(cases) if case.kind == kind]
        masks = np.stack([cases[i].mask for i in where])
        heats = enlarged((way(cases[i]) for i in where), masks.shape[1:])
        points[where] = pointed(heats, masks)
        overlaps[where] = ious(heats, masks, threshold)
    return Score(points, overlaps)


def _threshold(way: Way, cases: Sequence[Case]) -> float:
    if not cases:
        return 0.4
    masks = np.stack([case.mask for case in cases])[:, 1::2, 1::2]
    heats = enlarged((way(case) for case in cases), masks.shape[1:])
    means = [float(ious(heats, masks, t).mean()) for t in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(means))])


def choose_layers(recorded: Recorded) -> tuple[int, ...]:
    """Choose the set of layers with the best score for the words of these scenes."""
    cases = [c for c in recorded.cases if c.kind in ("noun", "object colour")]
    masks = np.stack([case.mask for case in cases])[:, 2::4, 2::4]
    by_layer = np.stack([case.maps.mean(0) for case in cases], axis=1)  # (layers, cases, 16, 16)
    each = np.stack([enlarged(maps, masks.shape[1:]) for maps in by_layer])
    layers = range(len(each))
    sets = [s for n in range(1, len(each) + 1) for s in itertools.combinations(layers, n)]

    return max(sets, key=lambda subset: _worth(each[list(subset)].mean(0), masks))


def choose_heads(recorded: Recorded) -> tuple[int, ...]:
    """Choose heads one by one, each the most helpful for the words of these scenes."""
    cases = [c for c in recorded.cases if c.kind in ("noun", "object colour")]
    masks = np.stack([case.mask for case in cases])[:, 2::4, 2::4]
    by_head = np.stack([case.heads for case in cases], axis=1)  # (heads, cases, 16, 16)
    each = np.stack([enlarged(maps, masks.shape[1:]) for maps in by_head])
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < len(each):
        left = [head for head in range(len(each)) if head not in chosen]
        worths = {head: _worth(each[[*chosen, head]].mean(0), masks) for head in left}
        head = max(worths, key=worths.__getitem__)
        if worths[head] <= best:
            break
        best = worths[head]
        chosen.append(head)
    return tuple(sorted(chosen))


def _worth(heats: Array, masks: Mask) -> float:
    best = max(float(ious(heats, masks, t).mean()) for t in THRESHOLDS[::2])
    return best + float(pointed(heats, masks).mean())


def summary(mine: Score, base: Score, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the figures of each class of words, and of the differences to the default."""
    found: dict[str, Any] = {}
    for kind in [EVERY, *sorted({case.kind for case in cases})]:
        where = [i for i, case in enumerate(cases) if kind in (EVERY, case.kind)]
        owners = [cases[i].scene for i in where]

        def stated(values: Array, where: list[int] = where, owners: list[int] = owners) -> Any:
            return interval([float(values[i]) for i in where], owners)

        found[kind] = {
            "pointing": stated(mine.points),
            "iou": stated(mine.ious),
            "pointing above default": stated(mine.points - base.points),
            "iou above default": stated(mine.ious - base.ious),
        }
    return found


def untrained(pipe: Any) -> Any:
    """Return the pipeline with a UNet of random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(pipe.unet.config).eval()
    return pipe.__class__(**{**pipe.components, "unet": unet}, requires_safety_checker=False)


def measure_grounding(pipe: Any, count: int) -> dict[str, Any]:
    """Score every way to make a heat map on ``count`` scenes, with floor and ceiling."""
    chosen_on = record_scenes(pipe, [scene(CHOICE_SEED + n) for n in range(count)])
    scenes = [scene(GROUND_SEED + n) for n in range(count)]
    recorded = record_scenes(pipe, scenes)
    picked = choose_layers(chosen_on)
    cases, others = recorded.cases, chosen_on.cases
    heads = choose_heads(chosen_on)
    all_ways = ways(recorded, picked, heads)
    base = score(all_ways["default"], cases, others)
    result: dict[str, Any] = {
        "scenes": count,
        "words": len(cases),
        "levels": list(LEVELS),
        "chosen layers": [recorded.layers[i].name for i in picked],
        "chosen heads": [_head_name(recorded.layers, head) for head in heads],
        "ways": {
            name: summary(score(way, cases, others), base, cases) for name, way in all_ways.items()
        },
    }
    random = record_scenes(untrained(pipe), scenes)
    floor = score(all_ways["default"], random.cases, random.cases)
    result["ways"]["random weights (floor)"] = summary(floor, base, cases)
    result["ways"]["exact mask (ceiling)"] = summary(score(ceiling, cases, others), base, cases)
    result["chance"] = float(np.mean([case.mask.mean() for case in cases]))
    return result


def _head_name(layers: Sequence[Layer], head: int) -> str:
    for layer in layers:
        if head < layer.heads:
            return f"{layer.name}, head {head}"
        head -= layer.heads
    raise ValueError(f"there is no head {head} more than these layers have")


def better(result: dict[str, Any]) -> list[str]:
    """Return the ways better than the default in one figure and worse in none.

    Both beyond noise: by the interval of the difference, taken word by word.
    """
    found = []
    for name, figures in result["ways"].items():
        above = [figures[EVERY][f"{what} above default"] for what in ("pointing", "iou")]
        rises, falls = any(x["low"] > 0 for x in above), any(x["high"] < 0 for x in above)
        if rises and not falls and "ceiling" not in name:
            found.append(name)
    return found


# -- precision


@torch.no_grad()
def measure_precision(pipe: Any, count: int = 8) -> dict[str, Any]:
    """Compare maps of half-precision models with float32's, layer by layer."""
    scenes = [scene(GROUND_SEED + n) for n in range(count)]
    exact = _trace(pipe, scenes, [500]).run
    result: dict[str, Any] = {}
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        try:
            pipe.unet.to(dtype)
            run = _trace(pipe, scenes, [500]).run
        except RuntimeError as error:
            result[name] = {"failed": str(error).splitlines()[0]}
            continue
        finally:
            pipe.unet.to(torch.float32)
        figures = {}
        for i, layer in enumerate(exact.layers):
            want, got = exact.maps(i).mean(2), run.maps(i).mean(2)
            peak = want.amax((-2, -1))
            figures[layer.name] = {
                "largest difference": float((got - want).abs().max()),
                "mean difference": float((got - want).abs().mean()),
                "mean": float(want.mean()),
                "of the peak": float(((got - want).abs().amax((-2, -1)) / peak).median()),
            }
        result[name] = figures
    return result
