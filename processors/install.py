"""Putting a handler into a layer, and taking it out again."""

from __future__ import annotations

from typing import Any

from xattn.processors.call import Handler
from xattn.processors.wrapping import handler_of, is_wrapped, unwrap, wrap


def install(module: Any, handler: Handler) -> None:
    """Wraps the processor of an attention module; does nothing where the handler stands already.

    Raises:
        TypeError: the processor computes attention where it can't be seen.
    """
    processor = module.processor
    while is_wrapped(processor):
        if handler_of(processor) is handler:
            return
        processor = unwrap(processor)
    _set_processor(module, wrap(module.processor, handler))


def remove(module: Any, handler: Handler) -> None:
    """Ends a handler, and takes its wrapper out of an attention module.

    A wrapper under one that still works stays, as the layer was found, until that one leaves.
    """
    handler.over, handler.live = True, False
    restored = _without_ended(module.processor)
    if restored is not module.processor:
        _set_processor(module, restored)


def remove_stored(model: Any) -> None:
    """Takes ended wrappers out of what a model put aside inside the block.

    ``fuse_qkv_projections()`` stores the processors that it finds, and ``unfuse_...`` puts them
    back, perhaps long after the block.
    """
    model = getattr(model, "_orig_mod", model)
    stored = model.__dict__.get("original_attn_processors")
    for name, processor in dict(stored or {}).items():
        stored[name] = _without_ended(processor)


def _without_ended(processor: Any) -> Any:
    """Gives a processor without the wrappers on it whose handlers are done."""
    while is_wrapped(processor) and getattr(handler_of(processor), "over", False):
        processor = unwrap(processor)
    return processor


def _set_processor(module: Any, processor: Any) -> None:
    """Sets a processor without ``set_processor``'s eviction of one that has weights."""
    if "processor" in module._modules:
        module._modules["processor"] = processor
    else:
        module.processor = processor
