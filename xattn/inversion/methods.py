"""The table of methods, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass

from xattn.inversion.ddim import DDIM, Euler
from xattn.inversion.direct import Direct
from xattn.inversion.edit_friendly import EditFriendly
from xattn.inversion.fireflow import FireFlow
from xattn.inversion.fixed_point import FixedPoint
from xattn.inversion.flowedit import FlowEdit
from xattn.inversion.method import Method
from xattn.inversion.negative import Negative
from xattn.inversion.null_text import NullText
from xattn.inversion.rf_solver import RFSolver
from xattn.inversion.uniedit import UniEdit
from xattn.units import size_text

DEFAULT = "direct"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Direct(), DDIM(), Negative(), NullText(), FixedPoint(), EditFriendly(), Euler(),
        RFSolver(), FireFlow(), FlowEdit(), UniEdit(),
    )
}  # fmt: skip
"""A row for each method."""


@dataclass(frozen=True)
class Cost:
    """What an inversion takes.

    Attributes:
        method: its name.
        calls: denoiser calls, at most.
        nbytes: size of what is kept, in bytes.
    """

    method: str
    calls: int
    nbytes: int

    def __str__(self) -> str:
        return f"inverting ({self.method}): {self.calls} denoiser calls, {size_text(self.nbytes)}"


def method_of(name: str, kind: str, pipeline: str) -> Method:
    """Return a method by its name.

    Args:
        name: the name.
        kind: "diffusion" or "flow": what the model is.
        pipeline: the pipeline's class, for the error.

    Raises:
        ValueError: there is no such method, or this kind of model can't have it.
    """
    those = [each for each, method in METHODS.items() if kind in method.kinds]
    if name not in METHODS:
        raise ValueError(
            f"method={name!r} is not a method of inversion; {pipeline} can have {', '.join(those)}"
        )
    if name not in those:
        was = {"diffusion": "a flow-matching model", "flow": "a diffusion model"}[kind]
        raise ValueError(
            f"method={name!r} needs {was}, and {pipeline} is none; it can have {', '.join(those)}"
        )
    return METHODS[name]


def cost_of(method: Method, steps: int, latent: int, text: int) -> Cost:
    """Return what an inversion takes at most.

    Args:
        method: the method.
        steps: number of steps.
        latent: numbers of one image's latents.
        text: numbers of one prompt's embeddings.
    """
    numbers = (steps + 1) * latent + method.extra(steps, latent, text)
    return Cost(method.name, method.calls(steps), 4 * numbers)
