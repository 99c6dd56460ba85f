"""The device of this process, according to accelerate."""

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
    """Return accelerate's ``PartialState``: this process's device and its rank.

    Raises:
        RuntimeError: the process was launched as one of several, but accelerate's state already
            exists as that of a single process, so each process would do all the work.
    """
    from accelerate import PartialState

    # Accelerate joins CPU processes only with cpu=True; the long timeout is because one process
    # may finish hours before another.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cpu = several and (kind is None or kind.type == "mps")
    state = PartialState(cpu=cpu, timeout=timedelta(days=7))
    if several and state.num_processes == 1:
        raise RuntimeError(
            f"this is one of {os.environ['WORLD_SIZE']} processes, but accelerate's PartialState "
            "was created for a single process; leave that to xattn, or create it with "
            f"PartialState(cpu={cpu})"
        )
    return state


def usual_device() -> torch.device:
    """Return the default device for models."""
    device: torch.device = process_state().device
    return device


DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"
"""`from_pretrained`'s name for the dtype; diffusers 0.42 warns at the older one."""


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide progress bars for parts read from disk; keep those of a download."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()
