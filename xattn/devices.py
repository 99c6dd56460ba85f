"""The device of this process, as accelerate tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import diffusers
import torch
import transformers
from packaging.version import Version


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


DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
"""What `from_pretrained` calls the number format; diffusers 0.42 warns at the older name."""


@contextmanager
def no_bars() -> Iterator[None]:
    """Show no bars for parts that are read from the disk; those of a download stay."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()
