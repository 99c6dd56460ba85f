"""What an attribution takes, before it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What an attribution takes, at most.

    Attributes:
        how: the method.
        words: how many words or phrases, or inputs.
        states: how many noised pictures, levels times noises; 0 where pictures are drawn.
        calls: rows of the denoiser; of inputs, runs of the pipeline.
    """

    how: str
    words: int
    states: int
    calls: int

    def __str__(self) -> str:
        if not self.states:
            return f"{self.how} of {self.words} inputs: {self.calls} pictures drawn"
        return (
            f"{self.how} of {self.words} words at {self.states} noised pictures: "
            f"{self.calls} denoiser rows"
        )
