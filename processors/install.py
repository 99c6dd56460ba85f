"""Wrapping a layer's processor and removing the wrapper: exact inverses."""

from __future__ import annotations

import threading
from typing import Any

from xattn.processors.chain import Chain
from xattn.processors.wrapping import (
    chain_of,
    innermost,
    is_wrapped,
    refuse_unseen,
    unwrap,
    wrap,
)

_lock = threading.Lock()
"""Held while a processor is read, wrapped and set: two threads can share a model."""


def install(module: Any, chain: Chain) -> None:
    """Wrap the processor of an attention module; do nothing if it already has the chain.

    Raises:
        TypeError: the processor computes attention out of xattn's reach.
    """
    with _lock:
        processor = module.processor
        while is_wrapped(processor):
            if chain_of(processor) is chain:
                refuse_unseen(innermost(processor))  # a backend can be set inside the block, too
                return
            processor = unwrap(processor)
        _set_processor(module, wrap(module.processor, chain))


def remove(module: Any, chain: Chain) -> None:
    """End a chain, and remove its wrapper from an attention module.

    A wrapper below one still in use stays, inactive, until the upper one leaves.
    """
    chain.over = True
    chain.sleep()
    with _lock:
        restored = _without_ended(module.processor)
        if restored is not module.processor:
            _set_processor(module, restored)


def remove_stored(model: Any) -> None:
    """Remove ended wrappers from processors a model stored inside the block.

    ``fuse_qkv_projections()`` stores the processors it finds, and ``unfuse_...`` restores them,
    perhaps long after the block.
    """
    model = getattr(model, "_orig_mod", model)
    stored = model.__dict__.get("original_attn_processors")
    for name, processor in dict(stored or {}).items():
        stored[name] = _without_ended(processor)


def _without_ended(processor: Any) -> Any:
    """Return a processor without wrappers whose chains have ended."""
    while is_wrapped(processor) and getattr(chain_of(processor), "over", False):
        processor = unwrap(processor)
    return processor


def _set_processor(module: Any, processor: Any) -> None:
    """Set a processor without ``set_processor``'s removal of one with weights."""
    if "processor" in module._modules:
        module._modules["processor"] = processor
    else:
        module.processor = processor
