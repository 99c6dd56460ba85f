"""The device of this process, as accelerate tells it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch


def process_state() -> Any:
    """Gives accelerate's ``PartialState``: this process's device, and its place among others.

    Raises:
        RuntimeError: the process was launched as one of several, but accelerate's state was made
            before as that of a single one, so that each would do everything.
    """
    from accelerate import PartialState

    # Accelerate joins processes on CPUs only when it is told that it is CPUs; and one process
    # may be done hours before another.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cpu = several and (kind is None or kind.type == "mps")
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    if several and state.num_processes == 1:
        raise RuntimeError(
            f"this is one of {os.environ['WORLD_SIZE']} processes, but accelerate's PartialState "
            "was made as that of a single one; leave that to xattn, or make it with "
            f"PartialState(cpu={cpu})"
        )
    return state


def usual_device() -> torch.device:
    """Gives the device that models are put on by default."""
    device: torch.device = process_state().device
    return device
