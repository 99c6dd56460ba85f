"""A guard that keeps a run to one thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class ThreadGuard:
    """Refuses a second thread while a run of the first is under way."""

    thread: int | None = None

    def claim(self) -> None:
        """Takes the recording for this thread."""
        self.thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether the recording is this thread's."""
        return self.thread == threading.get_ident()

    def release(self) -> None:
        """Lets any thread begin the next run."""
        self.thread = None

    def check(self) -> None:
        """Raises RuntimeError when another thread's run is under way."""
        if self.thread is not None and self.thread != threading.get_ident():
            raise RuntimeError(
                "another thread is using this pipeline, or one with the same UNet, inside a "
                "recording; give each thread a pipeline with a UNet of its own, or its own turn"
            )
