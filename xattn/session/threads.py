"""A guard that keeps a run to one thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class ThreadGuard:
    """A guard that refuses a second thread during another thread's run."""

    thread: int | None = None

    def claim(self) -> None:
        """Claim the recording for this thread."""
        self.thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether this thread has claimed the recording."""
        return self.thread == threading.get_ident()

    def release(self) -> None:
        """Let any thread begin the next run."""
        self.thread = None

    def check(self) -> None:
        """Raise RuntimeError during another thread's run."""
        if self.thread is not None and self.thread != threading.get_ident():
            raise RuntimeError(
                "another thread is using this pipeline, or one with the same UNet, inside a "
                "recording; give each thread a pipeline with a UNet of its own, or its own turn"
            )
