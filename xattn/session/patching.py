"""Attributes and denoiser calls replaced inside a block, and restored exactly."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_MISSING = object()


@dataclass(eq=False)
class _Replacement:
    owner: Any
    name: str
    value: Any
    before: Any
    over: bool = False


_replacements: list[_Replacement] = []


_lock = threading.Lock()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute on an instance for a while, then restore exactly what was there.

    Replacements of one attribute may end in any order: the last one restores the original.
    A value set by someone else in between stays.
    """
    with _lock:
        mine = _Replacement(owner, name, value, owner.__dict__.get(name, _MISSING))
        _replacements.append(mine)
        object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        with _lock:
            mine.over = True
            _restore(owner, name)


def _restore(owner: Any, name: str) -> None:
    while True:
        here = [r for r in _replacements if r.owner is owner and r.name == name]
        top = [r for r in here if r.value is owner.__dict__.get(name, _MISSING)]
        if not top or not top[0].over:
            break
        if top[0].before is _MISSING:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, top[0].before)
        _replacements.remove(top[0])
    if all(r.over for r in here):
        for r in here:
            _replacements.remove(r)


Before = Callable[[dict[str, Any]], "dict[str, Any] | None"]


After = Callable[[Any], None]


@contextmanager
def around_calls(
    denoiser: nn.Module, before: Before, after: After, *, first: bool = False
) -> Iterator[None]:
    """Call ``before(arguments)`` and ``after(output)`` around every call of a denoiser.

    ``arguments`` maps parameter names to values, and ``self`` to the denoiser; what ``before``
    returns takes their place, unless it is None. Works outside of torch.compile's graph, for both
    ``torch.compile(unet)`` and ``unet.compile()``.

    Args:
        denoiser: the model.
        before: called with the arguments of a call.
        after: called with its output.
        first: whether to be called before the hooks that are there.
    """
    model = _original(denoiser)
    names = list(inspect.signature(model.__class__.forward).parameters)

    def named(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(names, (model, *args), strict=False)), **kwargs}

    def instead(changed: dict[str, Any] | None) -> tuple[tuple[()], dict[str, Any]] | None:
        if changed is None:
            return None
        return (), {name: value for name, value in changed.items() if name != names[0]}

    compiled = denoiser.__dict__.get("_compiled_call_impl")
    if compiled is not None and denoiser is _original(denoiser):

        def call(*args: Any, **kwargs: Any) -> Any:
            changed = instead(before(named(args, kwargs)))
            result = compiled(*args, **kwargs) if changed is None else compiled(**changed[1])
            after(result)
            return result

        with replaced(denoiser, "_compiled_call_impl", call):
            yield
        return
    with _lock:  # torch gives the same number to two threads registering at once
        # another thread's call can fall between torch's two steps of registering with_kwargs
        begins = _Hook(lambda args, kwargs=None: instead(before(named(args, kwargs or {}))))
        begin = denoiser.register_forward_pre_hook(begins, with_kwargs=True, prepend=first)
        last = denoiser.register_forward_hook(_Hook(lambda args, output: after(output)))
    try:
        yield
    finally:
        with _lock:
            begin.remove()
            last.remove()


class _Hook:
    """A module hook that copies and pickles of the module leave out."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, module: nn.Module, *args: Any) -> Any:
        return self.call(*args)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> Any:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _nothing


def _nothing(*args: Any) -> None:
    """No-op that replaces our hook in copies of a module."""


class StandIn:
    """A function in place of a method, or of an object that is called.

    Copies of its owner have the original; an object's other attributes are reached through it.
    """

    def __init__(self, owner: Any, method: Any, call: Callable[..., Any]) -> None:
        if hasattr(method, "__name__"):
            functools.update_wrapper(self, method)  # wrappers around it still see the parameters
        self.__wrapped__ = method
        self.owner = owner
        self.method = method
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["method"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if "__name__" not in self.__dict__:
            return copy.deepcopy(self.method, memo)
        owner = memo.get(id(self.owner), self.owner)
        return getattr(type(owner), self.__name__).__get__(owner)

    def __reduce__(self) -> Any:
        if "__name__" not in self.__dict__:
            return _itself, (self.method,)
        return getattr, (self.owner.__class__, self.__name__)


def _itself(found: Any) -> Any:
    """Return the argument: what a copy of an object's stand-in is."""
    return found


def _original(denoiser: Any) -> Any:
    return getattr(denoiser, "_orig_mod", denoiser)


def is_compiled(denoiser: nn.Module) -> bool:
    """Return whether calls go through torch.compile."""
    in_place = denoiser.__dict__.get("_compiled_call_impl") is not None
    return in_place or denoiser is not _original(denoiser)


def mark_dynamic(tensor: Tensor, axis: int) -> None:
    """Mark an axis as dynamic for torch.compile: its length may change between calls."""
    from torch import _dynamo

    _dynamo.maybe_mark_dynamic(tensor, axis)
