"""Gradient passes through a denoiser, and the memory that one of them takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import BATCH_AXES, DenoiserCall
from xattn.processors.live import Live
from xattn.processors.wrapping import chain_of, is_wrapped, unwrap

_SCALES = (256.0, 1.0)  # of a loss in float16, whose gradients vanish below 6e-8


def forward_of(denoiser: nn.Module) -> Callable[..., Any]:
    """Return a denoiser's forward without its hooks: recordings don't follow it."""
    model: Any = getattr(denoiser, "_orig_mod", denoiser)
    forward: Callable[..., Any] = model.forward
    return forward


class PassEnded(Exception):  # noqa: N818  (not an error: a pass has done its part)
    """All maps of a pass are there, and the layers after them are not needed."""


def pass_until(denoiser: nn.Module, handlers: Sequence[Live], given: Mapping[str, Any]) -> None:
    """Call a denoiser until some layers have their maps; the layers after them are left out.

    A model whose modules are moved by hooks, or which checkpoints, runs to its end.

    Args:
        denoiser: the model, its other chains asleep.
        handlers: the layers', aimed and without maps.
        given: arguments of the call, by name.
    """
    model = getattr(denoiser, "_orig_mod", denoiser)
    whole = any(
        hasattr(each, "_hf_hook")
        or hasattr(each, "_diffusers_hook")
        or getattr(each, "gradient_checkpointing", False)
        for each in model.modules()
    )

    def ended() -> None:
        if all(each.maps is not None for each in handlers):
            raise PassEnded

    for handler in handlers:
        handler.after = None if whole else ended
    try:
        forward_of(denoiser)(**given)
    except PassEnded:
        pass
    finally:
        for handler in handlers:
            handler.after = None


def arguments_on(
    arguments: Mapping[str, Any], call: DenoiserCall, rows: slice, sample: Tensor
) -> dict[str, Any]:
    """Return a call's arguments for some of its rows and another sample of them.

    A tensor is divided if its axis of the batch is as long as the batch. The denoiser itself, as
    ``self``, is left out.

    Raises:
        ValueError: the sample isn't an argument of its own.
    """
    found, seen = {}, False
    for name, value in arguments.items():
        if isinstance(value, nn.Module):
            continue
        if value is call.sample:
            found[name], seen = sample, True
        else:
            found[name] = _along(value, call.rows, rows, BATCH_AXES.get(name, 0))
    if not seen:
        raise ValueError(
            "goals can't be had with this model, which is given its latents as a list of images; "
            "leave steer out"
        )
    return found


def _along(value: Any, batch: int, rows: slice, axis: int | None) -> Any:
    if axis is None and isinstance(value, Tensor) and value.ndim < 3:
        return value
    if not axis or not isinstance(value, Tensor) or value.shape[axis] != batch:
        return _on(value, batch, rows)
    return _on(value.movedim(axis, 0), batch, rows).movedim(0, axis)


def _on(value: Any, batch: int, rows: slice) -> Any:
    if isinstance(value, Tensor):
        if value.is_inference():
            value = value.clone()
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, tuple | list):
        return type(value)(_on(each, batch, rows) for each in value)
    if isinstance(value, dict):
        return {key: _on(each, batch, rows) for key, each in value.items()}
    return value


@contextmanager
def apart(denoiser: nn.Module, own: frozenset[int]) -> Iterator[None]:
    """Let a denoiser be called beside its run: gradients on, weights fixed, other blocks asleep.

    Args:
        denoiser: the model.
        own: ids of the handlers whose chains stay awake.
    """
    model = getattr(denoiser, "_orig_mod", denoiser)
    silenced = []
    for module in model.modules():
        processor = getattr(module, "processor", None)
        while is_wrapped(processor):
            chain = chain_of(processor)
            assert chain is not None
            if chain.live and not any(id(handler) in own for handler in chain.handlers):
                chain.live = False
                silenced.append(chain)
            processor = unwrap(processor)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        for chain in silenced:
            chain.live = True


def gradient(loss: Tensor, sample: Tensor) -> Tensor:
    """Return the gradient of a loss in a sample, in float32; float16 is scaled meanwhile."""
    scales = _SCALES if sample.dtype == torch.float16 else (1.0,)
    for scale in scales:
        (found,) = torch.autograd.grad(loss * scale, sample, retain_graph=scale != scales[-1])
        if scale == scales[-1] or bool(found.isfinite().all()):
            break
    return found.float() / scale


_known: Any = WeakIdKeyDictionary()  # bytes by the sample's shape, for each denoiser


def backward_bytes(denoiser: nn.Module, arguments: Mapping[str, Any], sample: Tensor) -> int | None:
    """Return the bytes kept for the way back through a denoiser, without computing anything.

    Args:
        denoiser: the model, all chains asleep.
        arguments: of a call, by name.
        sample: which of them is the sample.

    Returns:
        The bytes, or None where the model can't be traced (offloaded or quantised weights).
    """
    model = getattr(denoiser, "_orig_mod", denoiser)
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return None
    sizes: dict[Any, int | None] = _known.setdefault(model, {})
    key = (tuple(sample.shape), sample.dtype)
    if key not in sizes:
        sizes[key] = _traced(model, arguments, sample)
    return sizes[key]


def _traced(model: Any, arguments: Mapping[str, Any], sample: Tensor) -> int | None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    found: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            found[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    kept: list[Tensor] = []
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = {name: _faked(value, mode, sample) for name, value in arguments.items()}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                model.forward(**fake)
    except Exception:  # what can't be traced is not refused for it
        return None
    finally:
        _forget(model)
    return sum(found.values())


def _forget(model: nn.Module) -> None:
    """Clear what a model's methods remember (Qwen's positions): a trace leaves empty tensors."""
    for kind in {type(module) for module in model.modules()}:
        for method in vars(kind).values():
            inside = (cell.cell_contents for cell in getattr(method, "__closure__", None) or ())
            for each in (method, *inside):  # a decorator of diffusers' holds the cache inside
                if hasattr(each, "cache_clear"):
                    each.cache_clear()


def _faked(value: Any, mode: Any, sample: Tensor) -> Any:
    if isinstance(value, Tensor):
        fake = mode.from_tensor(value.detach())
        return fake.requires_grad_() if value is sample else fake
    if isinstance(value, tuple | list):
        return type(value)(_faked(each, mode, sample) for each in value)
    if isinstance(value, dict):
        return {key: _faked(each, mode, sample) for key, each in value.items()}
    return value
