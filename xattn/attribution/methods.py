"""The table of methods."""

from __future__ import annotations

from typing import Any

from xattn.attribution.gradients import Gradient
from xattn.attribution.information import Information
from xattn.attribution.method import Method
from xattn.attribution.occlusion import Occlusion
from xattn.attribution.shapley import Shapley
from xattn.attribution.surrogate import Surrogate

METHODS: dict[str, Method] = {
    method.name: method
    for method in (Occlusion(), Information(), Shapley(), Surrogate(), Gradient())
}
"""A row for each method, with its usual settings."""


def method_of(how: Any) -> Method:
    """Return a method by its name, or one with settings of its own.

    Raises:
        ValueError: there is no such method.
    """
    if isinstance(how, str):
        if how in METHODS:
            return METHODS[how]
    elif hasattr(how, "find"):
        found: Method = how
        return found
    raise ValueError(f"how={how!r} is not a method of attribution; use {', '.join(METHODS)}")
