"""Classes of diffusers by name, or a stand-in that skips the test which would build it.

This is the single place where tests of a family are skipped. The oldest diffusers of
``pyproject.toml`` lacks the newest families; ``from tests.tiny.classes import Krea2Pipeline``
imports there, too, and a test is skipped as soon as it makes such a pipeline. On the versions of
``constraints.txt`` nothing is lacking: ``tests/test_tiny.py`` holds that.
"""

from __future__ import annotations

import importlib
from typing import Any

import diffusers
import pytest
import torch
import transformers
from packaging.version import Version

LACKING: dict[str, str] = {}
"""For each class that was asked for and isn't here, the reason of its tests' skips."""

_HERE = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"


class Lacking(type):
    """The class of stand-ins: to build one, or to use what it has, skips the test."""

    reason: str

    def __call__(cls, *args: Any, **options: Any) -> Any:
        pytest.skip(cls.reason)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.skip(cls.reason)


def find(name: str, module: str = "diffusers") -> Any:
    """Return a class of diffusers, or a stand-in where the installed versions lack it."""
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        reason = f"{_HERE}: lacks {name}"
    except (ImportError, RuntimeError) as error:  # diffusers raises either for a failed import
        reason = f"{_HERE}: lacks {name} ({str(error).splitlines()[-1].partition(' (')[0]})"
    LACKING[name] = reason
    return Lacking(name, (), {"reason": reason})


def needed(cls: Any) -> Any:
    """Return a class; skip the test where it is a stand-in, before other parts are built."""
    return cls() if isinstance(cls, Lacking) else cls


def skip_before(version: str, what: str) -> None:
    """Skip a test where diffusers is older than the first one that can do something."""
    if Version(diffusers.__version__) < Version(version):
        pytest.skip(f"{_HERE}: lacks {what}")


def skip_before_torch(version: str, why: str) -> None:
    """Skip a test whose reference, or rounding, is another with a torch older than this one."""
    if Version(torch.__version__) < Version(version):
        pytest.skip(f"torch {torch.__version__}: {why}")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return find(name)
