"""Wrapping a layer's processor, and taking the wrapper out: exact inverses."""

from __future__ import annotations

from typing import Any

from xattn.processors.call import Chain
from xattn.processors.wrapping import chain_of, is_wrapped, unwrap, wrap


def install(module: Any, chain: Chain) -> None:
    """Wrap the processor of an attention module; do nothing where the chain stands already.

    Raises:
        TypeError: the processor computes attention where it can't be seen.
    """
    processor = module.processor
    while is_wrapped(processor):
        if chain_of(processor) is chain:
            return
        processor = unwrap(processor)
    _set_processor(module, wrap(module.processor, chain))


def remove(module: Any, chain: Chain) -> None:
    """End a chain, and take its wrapper out of an attention module.

    A wrapper under one that still works stays, as the layer was found, until that one leaves.
    """
    chain.over = True
    chain.sleep()
    restored = _without_ended(module.processor)
    if restored is not module.processor:
        _set_processor(module, restored)


def remove_stored(model: Any) -> None:
    """Take ended wrappers out of what a model put aside inside the block.

    ``fuse_qkv_projections()`` stores the processors that it finds, and ``unfuse_...`` puts them
    back, perhaps long after the block.
    """
    model = getattr(model, "_orig_mod", model)
    stored = model.__dict__.get("original_attn_processors")
    for name, processor in dict(stored or {}).items():
        stored[name] = _without_ended(processor)


def _without_ended(processor: Any) -> Any:
    """Return a processor without the wrappers on it whose chains are done."""
    while is_wrapped(processor) and getattr(chain_of(processor), "over", False):
        processor = unwrap(processor)
    return processor


def _set_processor(module: Any, processor: Any) -> None:
    """Set a processor without ``set_processor``'s eviction of one that has weights."""
    if "processor" in module._modules:
        module._modules["processor"] = processor
    else:
        module.processor = processor
