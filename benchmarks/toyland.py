"""Measurement of the bundled models: do they draw their prompt, and does attention ground words?

`python -m benchmarks.toyland` writes `toyland.json`, `toyland.md` and two contact sheets to
`benchmarks/results`; with `--model contextual` or `mmdit` their names end in `-contextual` or
`-mmdit`. `--quick` uses a tenth of the pictures. The maps of the joint-attention model are not
measured here.

Everything is measured on seeds never seen in training. Layers, noise levels and threshold are
chosen on other scenes than the measured ones. Intervals are 95 % bootstrap intervals over scenes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from benchmarks.judge import FIRST_SEED, Judge, Seen, Verdict, train_judge, verdicts
from xattn import toyland
from xattn.toyland.bundle import MODELS
from xattn.toyland.scenes import Scene, scene
from xattn.toyland.world import HELD_OUT, SIDE, SIZES

DRAW_SEED, HELD_OUT_SEED, CHOICE_SEED, GROUND_SEED = 10_000_000, 11_000_000, 12_000_000, 13_000_000
HARD_SEED = 14_000_000
KINDS = ("training", "held out", "hard")
"""Kinds of captions that the models are asked to draw."""
LEVELS = (100, 300, 500, 700, 900)
THRESHOLDS = np.linspace(0.1, 0.9, 33)
STEPS, GUIDANCE = 20, 5.0
RESULTS = Path(__file__).parent / "results"

Array = npt.NDArray[np.float64]


def interval(values: Sequence[float], owners: Sequence[int]) -> dict[str, float]:
    """Return the mean with its 95 % bootstrap interval; values of one owner are drawn together."""
    groups: dict[int, list[float]] = defaultdict(list)
    for value, owner in zip(values, owners, strict=True):
        groups[owner].append(float(value))
    if not groups:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "count": 0}
    sums = np.array([sum(group) for group in groups.values()])
    counts = np.array([len(group) for group in groups.values()])
    picks = np.random.default_rng(0).integers(len(sums), size=(1000, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(sums.sum() / counts.sum()),
        "low": float(low),
        "high": float(high),
        "count": len(values),
    }


class Tally:
    """Scores by name, each with the scene it comes from."""

    def __init__(self) -> None:
        self.scores: dict[str, tuple[list[float], list[int]]] = defaultdict(lambda: ([], []))

    def add(self, name: str, value: float, owner: int) -> None:
        """Add a score of the scene `owner`."""
        values, owners = self.scores[name]
        values.append(float(value))
        owners.append(owner)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return each name's mean and interval."""
        return {name: interval(*scores) for name, scores in sorted(self.scores.items())}


# -- does it draw what it is told?


def generate(
    pipe: StableDiffusionPipeline, captions: Sequence[str], seeds: Sequence[int], batch: int = 20
) -> torch.Tensor:
    """Draw captions, each from its own seed, and return their latents `(count, 8, 16, 16)`."""
    latents = []
    for start in range(0, len(captions), batch):
        generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + batch]]
        drawn = pipe(
            list(captions[start : start + batch]),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=generators,
            output_type="latent",
        )
        latents.append(drawn.images)
    return torch.cat(latents)


@torch.no_grad()
def decode(pipe: StableDiffusionPipeline, latents: torch.Tensor) -> list[Image.Image]:
    """Decode latents into pictures."""
    images: list[Image.Image] = []
    for part in (latents / pipe.vae.config.scaling_factor).split(20):
        images += pipe.image_processor.postprocess(pipe.vae.decode(part).sample)
    return images


@torch.no_grad()
def rebuild(pipe: StableDiffusionPipeline, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pass pictures through the autoencoder."""
    codes = [
        pipe.vae.encode(pipe.image_processor.preprocess(image)).latent_dist.mean for image in images
    ]
    return decode(pipe, torch.cat(codes) * pipe.vae.config.scaling_factor)


def score_picture(wanted: Scene, found: Verdict, tally: Tally) -> None:
    """Compare the caption with what the judge sees; only what the caption names counts."""
    seed = wanted.seed
    largest = found.things[: len(wanted.things)]
    in_order = sorted(largest, key=lambda thing: thing.x)
    for index, thing in enumerate(wanted.things):
        same = [seen for seen in largest if seen.noun == thing.noun]
        match = same[0] if same else (in_order[index] if index < len(in_order) else None)
        right_colour = match is not None and match.colour == thing.colour
        scenes = "one object" if len(wanted.things) == 1 else "two objects"
        tally.add("object", bool(same), seed)
        tally.add(f"object, {scenes}", bool(same), seed)
        tally.add(f"object: {thing.noun}", bool(same), seed)
        if thing.colour_said:
            tally.add("object colour", right_colour, seed)
            tally.add(f"object colour, {scenes}", right_colour, seed)
        if (thing.colour, thing.noun) in HELD_OUT:
            tally.add("held-out pair", bool(same) and right_colour, seed)
            tally.add(
                f"held-out pair: {thing.colour} {thing.noun}", bool(same) and right_colour, seed
            )
        if thing.place_word and match is not None:
            tally.add("place word", (match.x < SIDE / 2) == (thing.place_word == "left"), seed)
        if thing.size_word and match is not None:
            middle = sum(SIZES[""]) / 2
            small = np.sqrt(match.area / _fill(thing.noun)) < middle
            tally.add("size word", bool(small) == (thing.size_word == "small"), seed)
    tally.add("number of objects", len(found.things) == len(wanted.things), seed)
    if wanted.ground.colour_said:
        tally.add("ground colour", found.ground == wanted.ground.colour, seed)
    tally.add("night or day", found.dark == wanted.night, seed)


def score_hard(wanted: Scene, found: Verdict, tally: Tally) -> None:
    """Compare a hard scene with what the judge sees; each seen object answers for one asked.

    "everything asked" asks for every object in its colour, "everything, and nothing else" for the
    ground's colour, night or day, the order from left to right and the number of objects too.
    """
    asked = sorted(wanted.things, key=lambda thing: thing.box[0])  # left to right
    free = list(found.things)
    exact = [take(free, thing.noun, thing.colour) for thing in asked]
    named = [seen or take(free, thing.noun) for seen, thing in zip(exact, asked, strict=True)]
    for seen, either in zip(exact, named, strict=True):
        tally.add("object", either is not None, wanted.seed)
        tally.add("object in its colour", seen is not None, wanted.seed)
    places = [seen.x for seen in exact if seen is not None]
    complete = len(places) == len(asked)
    ground = found.ground == wanted.ground.colour
    counted = len(found.things) == len(asked)
    tally.add("number of objects", counted, wanted.seed)
    tally.add("ground colour", ground, wanted.seed)
    tally.add("night or day", found.dark == wanted.night, wanted.seed)
    tally.add("everything asked", complete, wanted.seed)
    if complete:
        tally.add("order from left to right", places == sorted(places), wanted.seed)
    rest = ground and counted and found.dark == wanted.night and places == sorted(places)
    tally.add("everything, and nothing else", complete and rest, wanted.seed)


def take(free: list[Seen], noun: str, colour: str | None = None) -> Seen | None:
    """Take the largest fitting object off a list."""
    fitting = [seen for seen in free if seen.noun == noun and colour in (None, seen.colour)]
    if fitting:
        free.remove(fitting[0])
    return fitting[0] if fitting else None


_FILL: dict[str, float] = {}


def _fill(noun: str) -> float:
    """Return the share of its box covered by a noun's mask, measured once on a drawn scene."""
    if noun not in _FILL:
        for seed in itertools.count(FIRST_SEED):
            drawn = scene(seed)
            if drawn.things[0].noun == noun:
                left, top, right, bottom = drawn.things[0].box
                area = (right - left) * (bottom - top)
                _FILL[noun] = float(drawn.thing_masks[0].sum() / area)
                break
    return _FILL[noun]


def asked(kind: str, count: int) -> list[Scene]:
    """Draw the scenes whose captions are asked for; half as many with held-out pairs."""
    if kind == "hard":
        return [scene(HARD_SEED + n, hard=True) for n in range(count)]
    if kind == "held out":
        return [scene(HELD_OUT_SEED + n, "held out") for n in range(count // 2)]
    return [scene(DRAW_SEED + n) for n in range(count)]


def measure_drawing(
    pipe: StableDiffusionPipeline,
    judge: Judge,
    count: int,
    keep: Path | None = None,
    kinds: Sequence[str] = KINDS,
) -> tuple[dict[str, Any], list[tuple[Scene, Image.Image, Verdict]]]:
    """Draw captions of unseen seeds and score them; score the judge itself on real scenes.

    `keep` is a folder for the drawn latents, to reuse them after a change of the decoder.
    """
    result: dict[str, Any] = {}
    drawn: list[tuple[Scene, Image.Image, Verdict]] = []
    for kind in kinds:
        wanted = asked(kind, count)
        score = score_hard if kind == "hard" else score_picture
        real, made = Tally(), Tally()
        pictures = [one.image for one in wanted]
        rebuilt = rebuild(pipe, pictures)
        passed = Tally()
        for one, verdict in zip(wanted, verdicts(judge, pictures), strict=True):
            score(one, verdict, real)
        for one, verdict in zip(wanted, verdicts(judge, rebuilt), strict=True):
            score(one, verdict, passed)
        path = None if keep is None else keep / f"latents-{wanted[0].seed}-{len(wanted)}.pt"
        if path is not None and path.exists():
            latents = torch.load(path, weights_only=True)
        else:
            captions = [one.caption for one in wanted]
            latents = generate(pipe, captions, [one.seed for one in wanted])
            if path is not None:
                torch.save(latents, path)
        images = decode(pipe, latents)
        for one, image, verdict in zip(wanted, images, verdicts(judge, images), strict=True):
            score(one, verdict, made)
            drawn.append((one, image, verdict))
        result[kind] = {
            "generated": made.summary(),
            "judge on real scenes": real.summary(),
            "judge on reconstructions": passed.summary(),
        }
    return result, drawn


# -- does its attention ground?


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


# -- pictures and pages


def labelled(image: Image.Image, text: str, height: int = 26) -> Image.Image:
    """Put a picture's caption under it, in at most two lines."""
    width = image.width
    canvas = Image.new("RGB", (width, image.height + height), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    lines, line = [], ""
    for word in text.split():
        if draw.textlength(f"{line} {word}") > width - 2:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    for row, content in enumerate([*lines, line][:2]):
        draw.text((2, image.height + 12 * row), content, fill="black")
    return canvas


def sheet(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    from xattn.toyland.training.sheets import tile

    return tile(tiles, columns)


def map_sheet(pipe: StableDiffusionPipeline, choice: Choice, count: int = 6) -> Image.Image:
    """Draw scenes with the maps of their words beside them, one scene a row."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"]
    tiles: list[Image.Image] = []
    most = 6
    scenes = [scene(GROUND_SEED + n) for n in range(60)]
    scenes = [one for one in scenes if len(one.masks) >= 4][:count]
    for one in scenes:
        words, _ = record(pipe, [one])
        names = [word.text for word in one.words if word.about is not None]
        row = [labelled(one.image, one.caption)]
        for name, values in list(zip(names, heat(words, choice), strict=True))[: most - 1]:
            share = values / max(float(values.max()), 1e-9)
            painted = Image.fromarray((colours(share)[..., :3] * 255).astype(np.uint8))
            row.append(labelled(Image.blend(one.image, painted, 0.65), name))
        blank = Image.new("RGB", row[0].size, "white")
        tiles += row + [blank] * (most - len(row))
    return sheet(tiles, most)


def measure_speed(load: Callable[[], StableDiffusionPipeline]) -> dict[str, float]:
    """Time loading, and one image of 20 steps with guidance."""
    start = time.perf_counter()
    pipe = load()
    loading = time.perf_counter() - start
    pipe.set_progress_bar_config(disable=True)
    pipe("a red car", num_inference_steps=2)
    start, work = time.perf_counter(), time.process_time()
    pipe("a red car on a green lawn", num_inference_steps=STEPS)
    return {
        "load seconds": loading,
        "image seconds": time.perf_counter() - start,
        "image cpu seconds": time.process_time() - work,
    }


def percent(figure: dict[str, float]) -> str:
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['mean']:.1f} % ({low:.1f} to {high:.1f}; {figure['count']})"


def markdown(result: dict[str, Any]) -> str:
    """Write the figures as a page."""
    drawing = result["drawing"]
    usual, held = drawing["training"], drawing["held out"]
    lines = [
        f"# Toyland: figures of {result['model']}",
        "",
        f"Made by `python -m benchmarks.toyland --model {result['model']}`: {result['pictures']} "
        f"captions, half as many with held-out pairs, and hard ones; {STEPS} "
        f"steps, guidance {GUIDANCE:g}. "
        "In brackets the 95 % bootstrap interval over scenes, and how many were judged.",
        "",
        f"Loading {result['speed']['load seconds']:.2f} s, one image of {STEPS} steps with "
        f"guidance {result['speed']['image seconds']:.2f} s "
        f"({result['speed']['image cpu seconds']:.2f} s of CPU time), {result['threads']} threads.",
        "",
        "## It draws what it is told",
        "",
        "| | generated | goal | judge on real scenes | the same through the autoencoder |",
        "|---|---|---|---|---|",
    ]
    goals = {"object": "92 %", "object colour": "95 %", "ground colour": "97 %"}
    for name, figure in usual["generated"].items():
        lines.append(
            f"| {name} | {percent(figure)} | {goals.get(name, '')} | "
            f"{percent(usual['judge on real scenes'][name])} | "
            f"{percent(usual['judge on reconstructions'][name])} |"
            if name in usual["judge on real scenes"] and name in usual["judge on reconstructions"]
            else f"| {name} | {percent(figure)} | {goals.get(name, '')} | | |"
        )
    for name, figure in held["generated"].items():
        if name.startswith("held-out"):
            goal = "85 %" if name == "held-out pair" else ""
            real = percent(held["judge on real scenes"][name])
            rebuilt = percent(held["judge on reconstructions"][name])
            lines.append(f"| {name} | {percent(figure)} | {goal} | {real} | {rebuilt} |")
    lines += [
        "",
        "## Hard captions",
        "",
        "Three objects, two of a kind, some small, half of the captions with place words.",
        "",
        "| | generated | goal | judge on real scenes | the same through the autoencoder |",
        "|---|---|---|---|---|",
    ]
    hard = drawing["hard"]
    for name, figure in hard["generated"].items():
        goal = "40 to 70 %" if name == "everything asked" else ""
        columns = [hard[key] for key in ("judge on real scenes", "judge on reconstructions")]
        cells = " | ".join(percent(column[name]) for column in columns)
        lines.append(f"| {name} | {percent(figure)} | {goal} | {cells} |")
    return "\n".join(lines + (grounding_lines(result) if "grounding" in result else [])) + "\n"


def grounding_lines(result: dict[str, Any]) -> list[str]:
    """Write the figures of the maps."""
    grounding = result["grounding"]
    chosen = grounding["choices"]["chosen layers"]
    lines = [
        "",
        "## Its attention grounds",
        "",
        f"Drawn scenes noised to the levels {', '.join(map(str, LEVELS))} and passed once through "
        "the UNet; a heat map is the mean over these levels. Layers and threshold were chosen on "
        f"other scenes: {', '.join(f'`{name}`' for name in chosen['layers'])}; "
        f"{chosen['threshold']:.2f} of the maximum.",
        "",
        "| word | pointing, chosen layers | IoU | pointing, all layers | IoU | mask's share |",
        "|---|---|---|---|---|---|",
    ]
    everything = grounding["choices"]["all layers"]
    for name, figure in chosen.items():
        if isinstance(figure, dict):
            other = everything[name]
            lines.append(
                f"| {name} | {percent(figure['pointing'])} | {figure['iou']['mean']:.3f} | "
                f"{percent(other['pointing'])} | {other['iou']['mean']:.3f} | "
                f"{100 * figure['chance']:.0f} % |"
            )
    for title, key in (("level (chosen layers)", "by level"), ("layer (all levels)", "by layer")):
        columns = list(next(iter(grounding[key].values())))
        lines += ["", f"Pointing / IoU at the best threshold of that row, by {title}:", ""]
        heads = [column.removesuffix(".transformer_blocks.0.attn2") for column in columns]
        lines += ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
        for kind, row in grounding[key].items():
            cells = [f"{100 * row[c]['pointing']:.0f} % / {row[c]['iou']:.2f}" for c in columns]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.toyland", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures")
    parser.add_argument(
        "--only",
        choices=["drawing", "hard", "grounding"],
        help="measure one part, keep the others' figures; hard is a part of drawing",
    )
    parser.add_argument("--model", choices=MODELS, default="unet")
    parser.add_argument("--count", type=int, help="captions of each kind; 200 by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--latents", type=Path, help="keep drawn latents in this folder")
    parser.add_argument("--judge", type=Path, default=Path(".work/judge-hard.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    def load() -> Any:
        return toyland.demo(options.model, device="cpu")

    count = options.count or (20 if options.quick else 200)
    ending = "" if options.model == "unet" else f"-{options.model}"
    path = options.out / f"toyland{ending}.json"
    result: dict[str, Any] = {}
    if options.only and path.exists():
        result = json.loads(path.read_text())
    if options.only != "hard":
        result["pictures"] = count
    result |= {"model": options.model, "threads": torch.get_num_threads()}
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    if options.only != "grounding":
        judge = train_judge(options.judge)
        if options.only != "hard":
            result["speed"] = measure_speed(load)
        kinds = ("hard",) if options.only == "hard" else KINDS
        new, drawn = measure_drawing(pipe, judge, count, options.latents, kinds)
        result["drawing"] = result.get("drawing", {}) | new
        tiles = [labelled(image, one.caption) for one, image, _ in drawn]
        if options.only != "hard":
            held, hard = tiles[count:][:6], tiles[count + count // 2 :][:12]
            chosen = [*tiles[: min(count, 24)], *held, *hard]
            sheet(chosen, 6).save(options.out / f"toyland-scenes{ending}.png", optimize=True)
    if options.only in (None, "grounding") and options.model != "mmdit":
        result["grounding"] = measure_grounding(pipe, count)
        layers = result["grounding"]["layers"]
        names = result["grounding"]["choices"]["chosen layers"]["layers"]
        choice = Choice(tuple(range(len(LEVELS))), tuple(layers.index(name) for name in names))
        map_sheet(pipe, choice).save(options.out / f"toyland-maps{ending}.png", optimize=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    if "drawing" in result:
        (options.out / f"toyland{ending}.md").write_text(markdown(result))
        print(markdown(result))


if __name__ == "__main__":
    main()
