"""See and steer what the words of a prompt do inside a text-to-image diffusion model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.edits import LocalBlend, Refine, Replace, Reweight
    from xattn.heatmap import HeatMap
    from xattn.run_folder import open_runs
    from xattn.sessions import record
    from xattn.siblings import EditResult, edit, editing, sweep
    from xattn.toyland import demo
    from xattn.trace import Trace, load

__version__ = "0.1.0.dev0"

# Imported when they are first asked for: `import xattn` stays light.
_HOMES = {
    "EditResult": "siblings",
    "HeatMap": "heatmap",
    "LocalBlend": "edits",
    "Refine": "edits",
    "Replace": "edits",
    "Reweight": "edits",
    "Trace": "trace",
    "demo": "toyland",
    "edit": "siblings",
    "editing": "siblings",
    "load": "trace",
    "open_runs": "run_folder",
    "record": "sessions",
    "sweep": "siblings",
}

__all__ = [
    "EditResult",
    "HeatMap",
    "LocalBlend",
    "Refine",
    "Replace",
    "Reweight",
    "Trace",
    "demo",
    "edit",
    "editing",
    "load",
    "open_runs",
    "record",
    "sweep",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "batch":
        return import_module("xattn.batch")
    if name not in _HOMES:
        raise AttributeError(f"module 'xattn' has no attribute {name!r}")
    value = getattr(import_module(f"xattn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
