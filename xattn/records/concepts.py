"""Runs of concepts and image prompts beside the run that they belong to, in files too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xattn.records.run import Run

BACKGROUND = "background"
"""The concept that stands for the empty prompt, asked with every other."""


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
