"""The page of figures of edited photographs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import machine

EDITS = (
    "recolour, plain", "recolour", "recolour, paper's mask", "swap", "swap, paper's mask", "add",
    "remove", "night",
)  # fmt: skip
MEASURES = {
    "right": (100, "%", 0),
    "background PSNR": (1, "dB", 1),
    "background SSIM": (100, "x 100", 1),
    "background MSE": (1e4, "x 10^4", 1),
    "structure": (1e3, "x 1000", 1),
}
"""Factor, unit and decimals of each."""


def page(whole: Mapping[str, Any]) -> str:
    """Format the figures of all models."""
    lines = [
        "# Photographs: figures",
        "",
        "By `python -m benchmarks.photographs`, whose text and that of `benchmarks.photo_scores` "
        "say what is edited and how it is scored. Drawn scenes never trained or chosen on, given "
        "as photographs. In brackets the 95 % bootstrap interval over scenes. A background's PSNR "
        "is at most 60 dB, its measures are to the autoencoder's reconstruction; \"recolour, "
        'plain" is without LocalBlend.',
    ]
    for model, found in whole.items():
        lines += ["", f"## {model}", ""]
        if "figures" in found:
            lines += _figures(found)
        if "choice" in found:
            lines += ["", *_choice(found["choice"])]
        if "times" in found:
            lines += ["", *_times(found["times"])]
        if "machine" in found:
            lines += ["", f"*{machine.line(found['machine'])}*"]
    return "\n".join(lines) + "\n"


def _figures(found: Mapping[str, Any]) -> list[str]:
    figures = found["figures"]
    methods = [name.partition(":")[0] for name in figures if name.endswith(": denoiser calls")]
    seen = _cell(figures["reconstruction: objects and colours seen"], 100, 0)
    lines = [
        f"{found['scenes']} scenes, {found['steps']} steps. Ceiling: in the autoencoder's own "
        f"reconstructions the judge sees every object in its colour in {seen} %.",
        "",
        "| method | scenes | fidelity of the source, dB | denoiser calls of the inversion "
        "| its CPU time, of that of the edits |",
        "|---|---|---|---|---|",
    ]
    for method in methods:
        one = figures[f"{method}: fidelity"]
        calls = figures[f"{method}: denoiser calls"]["mean"]
        share = _cell(figures[f"{method}: CPU time of inversion"], 1, 2)
        lines.append(f"| {method} | {one['count']} | {_cell(one, 1, 1)} | {calls:.0f} | {share} |")
    for edit in EDITS:
        lines += ["", *_edit(figures, methods, edit)]
    return lines


def _choice(found: Mapping[str, Any]) -> list[str]:
    """Format what masks and start were chosen by: other scenes than those above."""
    figures = found["figures"]
    names = [name.removesuffix(": right") for name in figures if name.endswith(": right")]
    lines = [
        f"Chosen on {found['scenes']} other scenes: the share of the run before which edits are "
        "held to the photograph, and the share of the largest change below which a mask's cells "
        "are left out at the last step.",
        "",
        "| edits held, edit, share of change | right, % | background PSNR, dB |",
        "|---|---|---|",
    ]
    for name in sorted(names, key=lambda name: (*name.split(", ")[:3], float(name.split(", ")[3]))):
        cells = [_cell(figures[f"{name}: right"], 100, 0)]
        cells += [_cell(figures[f"{name}: background PSNR"], 1, 1)]
        lines.append(f"| {name.removeprefix('direct, ')} | {' | '.join(cells)} |")
    return lines


def _edit(figures: Mapping[str, Any], methods: list[str], edit: str) -> list[str]:
    shown = [name for name in MEASURES if f"direct, {edit}: {name}" in figures]
    heads = " | ".join(f"{name}, {MEASURES[name][1]}" for name in shown)
    lines = [f"| {edit} | scenes | {heads} |", "|---" * (2 + len(shown)) + "|"]
    for method in methods:
        cells = [figures.get(f"{method}, {edit}: {name}") for name in shown]
        if cells and cells[0] is not None:
            texts = [
                _cell(one, MEASURES[name][0], MEASURES[name][2])
                for one, name in zip(cells, shown, strict=True)
            ]
            lines.append(f"| {method} | {cells[0]['count']} | {' | '.join(texts)} |")
    return lines


def _cell(one: Mapping[str, float], factor: float, decimals: int) -> str:
    mean, low, high = (f"{factor * one[key]:.{decimals}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _times(times: Mapping[str, Any]) -> list[str]:
    lines = [
        f"CPU time of one recolour in {times['steps']} steps, of that of the same edit of an image "
        "of the model's own (its source and one sibling); median of interleaved pairs, and "
        "quartiles:",
        "",
        "| | ratio |",
        "|---|---|",
    ]
    for name, both in times["ratios"].items():
        one = both["cpu"]
        lines.append(
            f"| {name} | {one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f}, "
            f"{one['pairs']} pairs) |"
        )
    return lines
