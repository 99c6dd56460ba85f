"""The pipelines that the app can draw with, by name, each loaded when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from xattn.models.sizes import size_factor
from xattn.session.pipeline import PipelineOrigin

BUNDLED = "unet"
"""The name of the model that none of ``--model`` means."""


class Shelf:
    """A pipeline that is loaded, and others that can be.

    Attributes:
        names: of all, the loaded one first.
    """

    def __init__(
        self,
        pipe: Any,
        name: str | None = None,
        others: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        self._others = dict(others or {})
        self.names = [name or BUNDLED, *self._others]
        self._loaded = {self.names[0]: _checked(pipe)}
        self._lock = threading.Lock()

    def pipe(self, name: str = "") -> Any:
        """Return a pipeline; the first one where the name is empty.

        Raises:
            ValueError: there is none of that name.
            TypeError: it can't be recorded.
        """
        name = name or self.names[0]
        if name not in self.names:
            raise ValueError(f"no model {name!r} here: choose one of {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = _checked(self._others[name]())
            return self._loaded[name]

    def factor(self, name: str = "") -> int:
        """Return the number of pixels that height and width must be multiples of."""
        return size_factor(self.pipe(name))


def _checked(pipe: Any) -> Any:
    PipelineOrigin(pipe)  # says early what can't be recorded
    pipe.set_progress_bar_config(disable=True)
    return pipe
