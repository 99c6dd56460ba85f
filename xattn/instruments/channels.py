"""Channels of a denoiser's modules: watched, or weakened, while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

Receive = Callable[[str, Tensor], None]


def chosen_modules(denoiser: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return a denoiser's modules whose names match the globs, in its order.

    A star stands inside one part of a name: "mid_block.resnets.*" leaves out what is inside them.

    Raises:
        ValueError: a glob does not match any module.
    """
    model: nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    globs = [layers] if isinstance(layers, str) else list(layers)
    named = {name: module for name, module in model.named_modules() if name}
    idle = [glob for glob in globs if not any(_matches(name, glob) for name in named)]
    if idle or not globs:
        known = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"layers={(idle or [str(layers)])[0]!r} does not match the name of a module of "
            f"{type(model).__name__}; names begin with: {known}"
        )
    return {name: each for name, each in named.items() if any(_matches(name, g) for g in globs)}


def _matches(name: str, glob: str) -> bool:
    parts, globs = name.split("."), glob.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


@contextmanager
def watched(modules: Mapping[str, nn.Module], receive: Receive) -> Iterator[None]:
    """Hand the image's part of each module's output to a function, by the module's name."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, arguments, output: receive(name, first_of(name, output).detach())

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        yield


@contextmanager
def weakened(
    modules: Mapping[str, nn.Module], channels: Mapping[str, Sequence[int]], weight: float
) -> Iterator[None]:
    """Multiply channels of modules' outputs by a weight, in every row of the batch."""

    def hook(name: str) -> Callable[..., Any]:
        def changed(module: nn.Module, arguments: Any, output: Any) -> Any:
            given = first_of(name, output)
            axis = 1 if given.ndim == 4 else -1
            factors = torch.ones(given.shape[axis], device=given.device, dtype=given.dtype)
            factors[list(channels[name])] = weight
            made = given * (factors[:, None, None] if axis == 1 else factors)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        return changed

    with ExitStack() as stack:
        for name in channels if weight != 1 else ():
            stack.callback(modules[name].register_forward_hook(hook(name)).remove)
        yield


def first_of(name: str, output: Any) -> Tensor:
    """Return a module's output, the first of several.

    Returns:
        (rows, channels, height, width) or (rows, places, channels)

    Raises:
        TypeError: it is not a tensor of this kind.
    """
    found = output[0] if isinstance(output, tuple) else output
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        raise TypeError(
            f"layers: the output of {name} is not a tensor of places, and has no channels that "
            "could be held against masks; choose other modules"
        )
    return found
