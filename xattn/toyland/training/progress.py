"""What every training here shares: how far it is, its learning rate, its checkpoints, its log."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from .team import Team


class Progress:
    """Counts steps and time, both kept across restarts.

    A training ends after `steps` steps, or after `minutes` minutes of work where that comes first.
    `share` is how much of it is done, in [0, 1], the same in all processes of the team; the
    learning rate follows it, so a training that is cut by the clock still ends with its rate at
    zero.
    """

    def __init__(
        self, folder: Path, name: str, steps: int, minutes: float | None, team: Team
    ) -> None:
        self.path = folder / f"{name}.pt"
        self.log_path = folder / f"{name}.jsonl"
        self.steps, self.minutes = steps, minutes
        self.team = team
        self.step = 0
        self.share = 0.0
        self._spent = 0.0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of work so far, those before a restart included."""
        return self._spent + time.monotonic() - self._since

    def advance(self) -> None:
        """Count one step."""
        self.step += 1
        self._measure()

    def _measure(self) -> None:
        by_clock = self.seconds / (60 * self.minutes) if self.minutes else 0.0
        self.share = self.team.agree(min(1.0, max(self.step / self.steps, by_clock)))

    def rate(self, peak: float, warmup: int = 200) -> float:
        """Give the learning rate: linear warm-up, then a cosine that ends at zero."""
        return peak * min(1.0, (self.step + 1) / warmup) * (1 + math.cos(math.pi * self.share)) / 2

    def log(self, **values: float) -> None:
        """Append one line of figures to the training's log, and print it."""
        if not self.team.leads:
            return
        record = {"step": self.step, "seconds": round(self.seconds, 1), **values}
        with self.log_path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k} {v:.5g}" for k, v in record.items()), flush=True)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        if not self.team.leads:
            return
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "step": self.step, "seconds": self.seconds}, partial)
        os.replace(partial, self.path)

    def resume(self) -> dict[str, Any] | None:
        """Read the last checkpoint, if there is one, and go on counting from it."""
        self.team.wait()
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        self.step, self._spent = int(state["step"]), float(state["seconds"])
        self._since = time.monotonic()
        self._measure()
        return state
