"""Runs of concepts and image prompts beside the run that they belong to, in files too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from xattn.records.run import Layer, MemoryStore, Run
from xattn.text.prompt import Prompt

BACKGROUND = "background"
"""The concept that stands for the empty prompt, asked with every other."""

EVIDENCE = "evidence"
"""The form that has each concept's gain at each level, in place of maps of attention.

Its two layers are where the concept leads towards the picture, and where away from it.
"""

GAINS = ("gain", "loss")


def gains_of(evidence: Run, steps: Sequence[int]) -> Tensor:
    """Return the mean over steps of the concepts' gains, (concepts, height, width)."""
    gain, loss = (evidence.maps(n, steps)[:, 0, 0].mean(0) for n in range(2))
    return gain - loss


def evidence_run(run: Run, names: Sequence[str], cells: Tensor) -> Run:
    """Return the run of the concepts' gains, (levels, concepts, height, width), beside a probe."""
    parts = tuple(part.clamp_min(0)[:, None, None].contiguous() for part in (cells, -cells))
    return replace(
        run,
        prompts=(Prompt.anonymous(len(names)),),
        prompt_of=(0,),
        positions=tuple(range(len(names))),
        layers=tuple(Layer(name, (cells.shape[-2], cells.shape[-1]), 1) for name in GAINS),
        keep=frozenset({"step", "layer"}),
        store=MemoryStore(parts),
        info={"concepts": list(names), "form": EVIDENCE},
        images=[],
        done=len(cells),
        estimates=None,
        affinity=None,
        map_layers=None,
        concepts={},
        outputs={},
        image_prompt={},
    )


def flattened(runs: Sequence[Run]) -> Iterator[Run]:
    """Yield each run, and the runs of its concepts and image prompt behind it."""
    for run in runs:
        yield run
        yield from run.concepts.values()
        yield from run.image_prompt.values()


def nested(runs: Sequence[Run]) -> list[Run]:
    """Return runs with those of concepts and image prompts put back into the run before them."""
    found: list[Run] = []
    for run in runs:
        if found and "concepts" in run.info and "form" in run.info:
            found[-1].concepts[str(run.info["form"])] = run
        elif found and "image prompt" in run.info and "form" in run.info:
            found[-1].image_prompt[str(run.info["form"])] = run
        else:
            found.append(run)
    return found
