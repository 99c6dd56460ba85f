"""How long attention should follow the source: edit strength against preservation.

`python -m benchmarks.schedules` writes `schedules.json`, `schedules.md` and `schedules.png` to
`benchmarks/results`; `--quick` uses 6 prompts. A word is replaced while cross-attention follows
the source for a share of the steps, and self-attention for half this share, as in the defaults
(0.8 and 0.4). A share of 0 is the new prompt without control. The textbook implementation of
`benchmarks.textbook`, with dense probabilities, is shown beside ours. Prompts, seeds and scores
are those of `benchmarks.edits`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import xattn
from benchmarks import machine, textbook
from benchmarks.edits import GUIDANCE, STEPS, Case, cases
from benchmarks.judge import Judge, train_judge
from benchmarks.looking import look, outside, psnr
from benchmarks.page import table
from benchmarks.tally import RESULTS, Tally, percent
from benchmarks.toyland_pictures import decode

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TEXTBOOK = (0.4, 0.8)
KINDS = {"recolour": "the new colour", "swap": "the new object"}
OURS, BOOK = "ours", "textbook"

Key = tuple[str, str, float]  # the kind of edit, its maker, and the share


def _swap(case: Case, kind: str) -> tuple[str, str]:
    old, new = case.colour, case.new_colour
    return (old, new) if kind == "recolour" else (case.noun, case.new_noun)


@torch.no_grad()
def draw(pipe: Any, case: Case, steps: int) -> tuple[Image.Image, dict[Key, Image.Image]]:
    """Return the source of a case, and its edits by kind, maker and share."""
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "latent"}
    asked: dict[Key, Any] = {
        (kind, OURS, share): xattn.Replace(
            *_swap(case, kind), cross_steps=share, self_steps=share / 2
        )
        for kind in KINDS
        for share in SHARES
    }
    noise = torch.Generator().manual_seed(case.seed)
    result = xattn.edit(pipe, case.prompt, *asked.values(), generator=noise, trace=False, **options)
    latents = dict(zip(asked, result.images, strict=True))
    for kind in KINDS:
        old, new = _swap(case, kind)
        texts = [case.prompt, case.prompt.replace(f" {old} ", f" {new} ")]
        for share in TEXTBOOK:
            twins = [torch.Generator().manual_seed(case.seed) for _ in texts]
            with textbook.replacing(pipe, steps, cross_steps=share, self_steps=share / 2):
                latents[kind, BOOK, share] = pipe(texts, generator=twins, **options).images[1]
    images = decode(pipe, torch.stack([result.source, *latents.values()]))
    return images[0], dict(zip(latents, images[1:], strict=True))


def score(case: Case, source: Image.Image, edits: dict[Key, Image.Image], judge: Judge,
          tally: Tally) -> None:  # fmt: skip
    """Score the edits of a case, unless the source does not show its object."""
    original, *found = look(judge, [source, *edits.values()])
    if original is None or (original.noun, original.colour) != (case.noun, case.colour):
        return
    for (key, image), seen in zip(edits.items(), found, strict=True):
        kind = key[0]
        shape = original.mask if seen is None else seen.mask
        if kind == "recolour":
            right = seen is not None and seen.colour == case.new_colour
        else:
            right = seen is not None and seen.noun == case.new_noun
        name = "/".join(map(str, key))
        tally.add(f"{name}/done", right, case.seed)
        tally.add(f"{name}/kept", psnr(source, image, outside(original.mask, shape)), case.seed)


def markdown(result: dict[str, Any]) -> str:
    """Format the figures as a page."""
    facts, result = result["machine"], result["result"]
    parts = [
        "# Schedules: what is kept against what is done",
        f"Made by `python -m benchmarks.schedules`: {result['prompts']} prompts, "
        f"{result['steps']} DDIM steps, guidance {GUIDANCE:g}. Cross-attention follows the source "
        "for the share of the steps, self-attention for half of it. Background: outside of the "
        "object before and after. In brackets 95 % bootstrap intervals over prompts, and how many "
        "were scored.",
        "![kept against done](schedules.png)",
    ]
    for kind, aim in KINDS.items():
        rows = []
        for name, figures in result["figures"].items():
            of, maker, share = name.split("/")
            if of != kind:
                continue
            kept, done = figures["kept"], figures["done"]
            shown = f"{kept['mean']:.1f} dB ({kept['low']:.1f} to {kept['high']:.1f})"
            rows.append((maker, share, shown, percent(done)))
        parts += [f"## {kind.capitalize()}", table(("", "share", "background kept", aim), rows)]
    return "\n\n".join([*parts, f"*{machine.line(facts)}*"]) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot background kept (x) against edit done (y), a panel per kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for panel, (kind, aim) in zip(figure.subplots(1, 2), KINDS.items(), strict=True):
        for maker, style, colour in ((OURS, "o-", "#30508c"), (BOOK, "x", "#c0392b")):
            shares = SHARES if maker == OURS else TEXTBOOK
            points = [result["figures"][f"{kind}/{maker}/{share}"] for share in shares]
            x, y = ([p[what]["mean"] for p in points] for what in ("kept", "done"))
            y = [100 * value for value in y]
            label = "ours, by share" if maker == OURS else "textbook"
            panel.plot(x, y, style, color=colour, label=label, markersize=9 if style == "x" else 6)
            if maker == OURS:
                for share, at in zip(shares, zip(x, y, strict=True), strict=True):
                    name = "no control" if share == 0 else f"{share:g}"
                    panel.annotate(name, at, (4, -13), textcoords="offset points", fontsize=8)
        panel.set(xlabel="background kept, PSNR in dB", ylabel=f"{aim} is there, %")
        panel.set_ylim(-3, 106)
        panel.set_title(kind, loc="left")
        panel.grid(alpha=0.3)
        panel.legend(loc="lower left")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, score, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedules", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="6 prompts")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", type=Path, default=Path(".work/judge.pt"), help="kept here")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = xattn.demo(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    judge, tally = train_judge(options.judge), Tally()
    chosen = cases(6 if options.quick else options.prompts)
    for case in chosen:
        score(case, *draw(pipe, case, options.steps), judge, tally)
    figures: dict[str, Any] = {}
    for name, value in tally.summary().items():
        key, _, what = name.rpartition("/")
        figures.setdefault(key, {})[what] = value
    found = {"prompts": len(chosen), "steps": options.steps, "figures": figures}
    result = {"quick": options.quick, "machine": machine.facts(), "result": found}
    (options.out / "schedules.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (options.out / "schedules.md").write_text(markdown(result), "utf-8")
    plot(found, options.out / "schedules.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
