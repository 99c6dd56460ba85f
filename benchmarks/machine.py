"""The environment of a result: versions, and the kind of machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from xattn.records.run import info_versions


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def facts() -> dict[str, Any]:
    """Return plain JSON values, without anything that identifies a single machine."""
    cuda = torch.cuda.is_available()
    return {
        "versions": {**info_versions(), "python": platform.python_version()},
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
    }


def line(found: dict[str, Any]) -> str:
    """Return the facts as one line, for use below a table."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpu = f", {found['gpu']}" if found["gpu"] else ""
    return f"{found['cpu']}, {found['cores']} cores, {found['capability']}{gpu}; {versions}."
