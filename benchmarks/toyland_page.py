"""The page and the contact sheets of the bundled models' figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from benchmarks.tally import percent
from benchmarks.toyland_maps import GROUND_SEED, LEVELS, Choice, heat, record
from benchmarks.toyland_pictures import GUIDANCE, STEPS
from xattn.toyland.scenes import scene


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
