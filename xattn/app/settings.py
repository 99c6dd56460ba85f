"""Settings of a drawing, and the limits of what a visitor may ask for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from xattn.guidance.goal import Goal
from xattn.guidance.spelled import goals_of
from xattn.text.matching import check_text

GOALS = ("present", "bind", "place", "apart")


@dataclass(frozen=True)
class Limits:
    """What a visitor can ask for at most.

    Attributes:
        steps: of a run.
        side: of an image, in pixels.
        edits: edited images in one run.
        prompt: characters.
    """

    steps: int = 50
    side: int = 1024
    edits: int = 4
    prompt: int = 1000


@dataclass(frozen=True)
class Settings:
    """What a visitor asked for; `model` is a name on the app's shelf, the first one where empty.

    Goals of ``xattn.steer`` are lists of what the command line's options take, with semicolons
    or line breaks between: `present` "mug; fish", `bind` "pink=fish", `place` "star=left".
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 30
    width: int = 512
    height: int = 512
    guidance: float = 7.5
    model: str = ""
    present: str = ""
    bind: str = ""
    place: str = ""
    apart: str = ""

    def check(self, limits: Limits, factor: int) -> None:
        """Refuse what is out of bounds, whatever the page let through.

        Raises:
            ValueError: something is, and what the bounds are.
        """
        for name in ("prompt", "negative", *GOALS):
            check_text(getattr(self, name), f"the {name}")
            if len(getattr(self, name)) > limits.prompt:
                raise ValueError(f"the {name} is longer than {limits.prompt} characters")
        self.goals()
        if not self.prompt.strip():
            raise ValueError("the prompt is empty: write what the image should show")
        _within("steps", self.steps, 1, limits.steps)
        _within("seed", self.seed, 0, 2**63 - 1)
        _within("guidance", self.guidance, 0, 30)
        for name in ("width", "height"):
            side = getattr(self, name)
            _within(name, side, factor, limits.side)
            if side % factor:
                raise ValueError(f"{name} {side} must be a multiple of {factor}")

    def goals(self) -> list[Goal]:
        """Return the goals to steer to.

        Raises:
            ValueError: one is not of its form.
        """
        return goals_of(*(_listed(getattr(self, name)) for name in GOALS))

    def arguments(self) -> dict[str, Any]:
        """Return the pipeline's arguments, but for the generator."""
        found: dict[str, Any] = {
            "num_inference_steps": int(self.steps),
            "height": int(self.height),
            "width": int(self.width),
            "guidance_scale": float(self.guidance),
        }
        if self.negative.strip():
            found["negative_prompt"] = self.negative
        return found


def _listed(text: str) -> list[str]:
    return [each.strip() for each in re.split(r"[;\n]", text) if each.strip()]


def _within(name: str, value: float, least: float, most: float) -> None:
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} {value} is out of bounds: {least} to {most}")
