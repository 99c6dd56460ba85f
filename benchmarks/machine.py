"""What a result was measured with: the versions, and the machine's kind."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from xattn.records.run import info_versions


def cpu_model() -> str:
    """Gives the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def facts() -> dict[str, Any]:
    """Gives plain JSON values; nothing that would tell one machine from another of its kind."""
    cuda = torch.cuda.is_available()
    return {
        "versions": {**info_versions(), "python": platform.python_version()},
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
    }


def line(found: dict[str, Any]) -> str:
    """Gives the facts as one line for under a table."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    gpu = f", {found['gpu']}" if found["gpu"] else ""
    return f"{found['cpu']}, {found['cores']} cores, {found['capability']}{gpu}; {versions}."
