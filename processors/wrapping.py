"""A processor wrapping the layer's own, and taking over its attention call.

Projections, norms, LoRA, IP-Adapter and rotary embeddings stay the model's. Two paths lead to the
attention call: ``torch.nn.functional.scaled_dot_product_attention``, intercepted by a
``TorchFunctionMode``, and ``attn.get_attention_scores`` of diffusers' explicit and sliced
processors. A mode intercepts every torch function of a layer's call, which costs a small model
several per cent; so the most common processor runs its own code with this one name bound to the
handlers.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xattn.processors.call import AttentionCall
from xattn.processors.chain import Chain
from xattn.processors.own_call import OwnCall

_SDPA = "scaled_dot_product_attention"
_SCORES = "get_attention_scores"


class Interception(TorchFunctionMode):
    """Hand one scaled dot-product attention of a layer's call to its chain of handlers.

    Usually the first: the text's (or, in a self-attention layer, the image's). What IP-Adapter adds
    after it runs unchanged, and is shown to handlers that ask for it.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.count = 0

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.count += 1
        if self.chain.rowwise:
            return _attend_row(self.chain, self.count - 1, *args, **kwargs)
        added = self.count - self.chain.nth - 2  # behind the handled one, from 0
        if added == -1:
            return _attend(self.chain, *args, **kwargs)
        if added >= 0 and self.chain.watches_added:
            return self.chain.attend_added(_call(self.chain, *args, **kwargs), added)
        return func(*args, **kwargs)


def _attend(chain: Chain, *args: Any, **kwargs: Any) -> Tensor:
    return chain.attend(_call(chain, *args, **kwargs))


def _attend_row(chain: Chain, row: int, *args: Any, **kwargs: Any) -> Tensor:
    call = _call(chain, *args, **kwargs)
    call.row = row
    return chain.attend(call)


def _call(
    chain: Chain,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    extra: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    factor, own = query.shape[-1] ** -0.5 if scale is None else scale, OwnCall(extra)
    if enable_gqa:
        key, value = own.repeated(key, value, query.shape[1])
    return AttentionCall(query, key, value, attn_mask, factor, own, chain.locate)


_classes: dict[type, type] = {}

_STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


def wrap(inner: Any, chain: Chain) -> Any:
    """Return a processor that runs ``inner``, but hands its attention call to ``chain``.

    From outside it looks like ``inner``: class, attributes, weights, parameter names.

    Raises:
        TypeError: ``inner`` computes attention out of xattn's reach (xformers, for one).
    """
    kind = type(inner)
    refuse_unseen(innermost(inner))
    if kind not in _classes:
        _classes[kind] = _wrapper_class(inner)
    return _classes[kind](inner, chain)


def unwrap(processor: Any) -> Any:
    """Return the processor inside an xattn processor, or the processor itself."""
    return (
        object.__getattribute__(processor, "_xattn_inner") if is_wrapped(processor) else processor
    )


def innermost(processor: Any) -> Any:
    """Return the processor inside all our wrappers, however deeply nested."""
    while is_wrapped(processor):
        processor = unwrap(processor)
    return processor


def is_wrapped(processor: Any) -> bool:
    """Return whether a processor is one of ours (only ``type``, not ``__class__``, tells)."""
    return issubclass(type(processor), Wrapper)


def chain_of(processor: Any) -> Chain | None:
    """Return the chain of an xattn processor, or None for any other."""
    if not is_wrapped(processor):
        return None
    chain: Chain = object.__getattribute__(processor, "_xattn_chain")
    return chain


def _names(kind: type) -> set[str]:
    """Return the attribute names used by the processor's call, one function deep."""
    names: set[str] = set()
    for method in ("__call__", "forward"):
        code = getattr(getattr(kind, method, None), "__code__", None)
        names.update(code.co_names if code else ())
    return names


def refuse_unseen(inner: Any) -> None:
    """Raise TypeError if a processor computes attention where nobody sees it."""
    name = type(inner).__name__
    if "xformers" in name.lower():
        raise TypeError(
            f"{name} computes attention inside xformers, out of xattn's reach; "
            "call pipe.disable_xformers_memory_efficient_attention() first"
        )
    if "FlexAttn" in name:
        raise TypeError(
            f"{name} computes attention in flex_attention, out of xattn's reach; call "
            f"transformer.set_attn_processor({name.replace('Flex', '')}()) first"
        )
    if not hasattr(inner, "_attention_backend"):
        return  # it knows no backends
    if getattr(inner, "_parallel_config", None) is not None:
        raise TypeError(
            f"{name} computes attention on several devices (parallel_config), out of xattn's "
            "reach; record without enable_parallelism()"
        )
    own = inner._attention_backend
    backend = _process_wide() if own is None else own
    chosen = str(getattr(backend, "value", backend))
    if chosen.lstrip("_").startswith("native"):
        return
    if own is None:
        raise TypeError(
            f"{name} computes attention in the backend {chosen!r}, out of xattn's reach, as it is "
            "this process's; unset DIFFUSERS_ATTN_BACKEND or leave attention_backend(...), or call "
            'set_attention_backend("native") of the pipeline\'s unet or transformer, first'
        )
    raise TypeError(
        f"{name} computes attention in the backend {chosen!r}, out of xattn's reach; "
        'call set_attention_backend("native") of the pipeline\'s unet or transformer first'
    )


def _process_wide() -> Any:
    """Return diffusers' backend for processors that have none of their own."""
    module = sys.modules.get("diffusers.models.attention_dispatch")
    registry = getattr(module, "_AttentionBackendRegistry", None)
    return "native" if registry is None else registry.get_active_backend()[0]


class Wrapper:
    """A processor that looks like the one inside it; see ``wrap``."""

    def __init__(self, inner: Any, chain: Chain) -> None:
        object.__setattr__(self, "_xattn_inner", inner)
        object.__setattr__(self, "_xattn_chain", chain)
        object.__setattr__(self, "_xattn_direct", _direct(inner, chain))

    @property  # type: ignore[misc]  # asked by isinstance() and unload_ip_adapter()
    def __class__(self) -> Any:
        return type(object.__getattribute__(self, "_xattn_inner"))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_xattn_inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_xattn_inner"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_xattn_inner"), name)

    def __repr__(self) -> str:
        return f"xattn({object.__getattribute__(self, '_xattn_inner')!r})"

    # copies and pickles hold the model's own processor, without ours
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(object.__getattribute__(self, "_xattn_inner"), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__getattribute__(self, "_xattn_inner").__reduce_ex__(protocol)


def _run(inner: Any, chain: Chain, attn: Any, *args: Any, **kwargs: Any) -> Any:
    if not chain.live:
        return inner(attn, *args, **kwargs)
    chain.opened()
    with Interception(chain):
        return inner(attn, *args, **kwargs)


def _run_direct(direct: Any, inner: Any, chain: Chain, *args: Any, **kwargs: Any) -> Any:
    if not chain.live or torch.compiler.is_compiling():
        return _run(inner, chain, *args, **kwargs)
    chain.opened()
    return direct(inner, *args, **kwargs)


class _Functional:
    """A stand-in for a processor's ``torch.nn.functional``, with one name replaced."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def scaled_dot_product_attention(self, *args: Any, **kwargs: Any) -> Tensor:
        return _attend(self.chain, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


def _has_direct(kind: type) -> bool:
    """Return whether a processor makes exactly one attention call, as ``F.scaled_...``."""
    usual = ("diffusers.models.attention_processor", "AttnProcessor2_0")
    call = kind.__call__
    return (
        (kind.__module__, kind.__name__) == usual
        and isinstance(call, FunctionType)
        and call.__closure__ is None
        and call.__globals__.get("F") is F
        and _SDPA in call.__code__.co_names
    )


def _direct(inner: Any, chain: Chain) -> Any:
    """Return the processor's own code with ``F`` bound to the chain's; None if that is unsafe.

    Its results cannot differ: it is the same code object.
    """
    if not _has_direct(type(inner)):
        return None
    call = type(inner).__call__
    names = {**call.__globals__, "F": _Functional(chain)}
    direct = FunctionType(call.__code__, names, call.__name__, call.__defaults__)
    direct.__kwdefaults__ = call.__kwdefaults__
    return direct


def _run_explicit(
    inner: Any, chain: Chain, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Any:
    if not chain.live:
        return inner(attn, hidden_states, *args, **kwargs)
    compute, batch = attn.get_attention_scores, len(hidden_states)

    def scores(query: Tensor, key: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return chain.scores(query, key, attention_mask, attn.scale, batch, compute)

    shadowed = attn.__dict__.get("get_attention_scores")
    attn.get_attention_scores = scores
    chain.opened()
    try:
        return inner(attn, hidden_states, *args, **kwargs)
    finally:
        if shadowed is None:
            del attn.get_attention_scores
        else:
            attn.get_attention_scores = shadowed


def _wrapper_class(inner: Any) -> type:
    """Make the wrapper class of a processor class, with its own parameter list.

    ``Attention.forward`` passes only keyword arguments named in the signature of ``__call__``, and
    torch.compile follows neither a patched ``__signature__`` nor a ``__call__`` set on an
    instance: so a method of the class must spell out the parameter list.
    """
    kind = type(inner)
    used = _names(type(innermost(inner)))
    first = ""
    runner: Any = _run_explicit if _SCORES in used and _SDPA not in used else _run
    if _has_direct(kind):
        runner, first = _run_direct, "self._xattn_direct, "
    names: dict[str, Any] = {"_runner": runner}
    declared: list[str] = []
    passed: list[str] = []
    for i, p in enumerate(inspect.signature(kind.__call__).parameters.values()):
        if i == 0:
            continue  # self
        star = _STARS.get(p.kind, "")
        if p.kind is p.KEYWORD_ONLY and not any(d.startswith("*") for d in declared):
            declared.append("*")
        default = ""
        if p.default is not p.empty:
            names[f"_default{i}"] = p.default
            default = f"=_default{i}"
        declared.append(f"{star}{p.name}{default}")
        keyword = p.kind is p.KEYWORD_ONLY
        passed.append(f"{p.name}={p.name}" if keyword else f"{star}{p.name}")
    source = (
        f"def __call__(self, {', '.join(declared)}):\n"
        f"    return _runner({first}self._xattn_inner, self._xattn_chain, {', '.join(passed)})\n"
    )
    exec(source, names)
    return type(f"Xattn{kind.__name__}", (Wrapper,), {"__call__": names["__call__"]})
