"""What the commands have in common: their options, and what is drawn with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from xattn.cli import UsageError
from xattn.text.matching import check_text
from xattn.units import number_of

MODEL, RUN, OUTPUT = "Model", "Sampling", "Output"


class Dtype(str, Enum):
    """Precisions."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Offload(str, Enum):
    """How weights wait in the CPU's memory."""

    MODEL = "model"
    SEQUENTIAL = "sequential"


def _size(text: str) -> tuple[int, int]:
    from xattn.units import size_of

    try:
        return size_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def axes_of(texts: Sequence[str]) -> list[str]:
    """Return the axes that ``--keep`` names, by commas or one by one."""
    return [axis.strip() for text in texts for axis in text.split(",") if axis.strip()]


@contextmanager
def asked() -> Iterator[None]:
    """Make a wrong call of each ValueError in the block, which checks what was asked for."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _guidance(text: Any) -> float:
    try:
        return number_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _text(given: str | None) -> str | None:
    try:
        return None if given is None else check_text(given, "it")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


PromptArgument = Annotated[
    str, typer.Argument(help="The prompt.", show_default=False, callback=_text)
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="A folder or a hub id; the bundled Toyland model by default.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", help="cpu, cuda, cuda:1, mps; the accelerator there is by default.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype", help="float16 on an accelerator, float32 on a CPU by default.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
OffloadOption = Annotated[
    Offload | None,
    typer.Option(
        "--offload", help="Keep weights in the CPU's memory, by whole models or layer by layer.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of the noise.", rich_help_panel=RUN)
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps", min=1, max=1000, help="The model's own number by default.", rich_help_panel=RUN
    ),
]
SizeOption = Annotated[
    Any,
    typer.Option(
        "--size", parser=_size, metavar="WxH", help="In pixels: 512, or 768x512.",
        rich_help_panel=RUN,
    ),
]  # fmt: skip
GuidanceOption = Annotated[
    Any,
    typer.Option(
        "--guidance", parser=_guidance, metavar="NUMBER", help="Guidance scale; 1 is off.",
        rich_help_panel=RUN,
    ),
]  # fmt: skip
NegativeOption = Annotated[
    str | None,
    typer.Option("--negative", help="The negative prompt.", rich_help_panel=RUN, callback=_text),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method", help="How to invert it: direct (the default), ddim, negative, null-text, "
        "fixed-point, edit-friendly; of flow matching also euler, rf-solver, fireflow, flowedit, "
        "uniedit.",
    ),
]  # fmt: skip
OutOption = Annotated[
    Path, typer.Option("--out", help="The folder for results.", rich_help_panel=OUTPUT)
]
RefinedOption = Annotated[
    bool,
    typer.Option(
        "--refined", help="Maps of the words that follow the image's outlines, by self-attention."
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object, and nothing else.", rich_help_panel=OUTPUT),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show warnings, and where an error comes from.", rich_help_panel=OUTPUT
    ),
]


@dataclass(frozen=True)
class Request:
    """What to draw with, and how: the options of a command that samples."""

    model: str | None = None
    device: str | None = None
    dtype: Dtype | None = None
    offload: Offload | None = None
    seed: int = 0
    steps: int | None = None
    size: tuple[int, int] | None = None
    guidance: float | None = None
    negative: str | None = None

    def pipeline(self, console: Console) -> Any:
        """Load the model.

        Raises:
            UsageError: there is no such model, device or precision.
        """
        with asked(), console.status(f"loading {self.model or 'the bundled model'}"):
            from xattn.models.loading import load_pipeline

            pipe = load_pipeline(
                self.model,
                device=self.device,
                dtype=self.dtype.value if self.dtype else None,
                offload=self.offload.value if self.offload else None,
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that were asked for.

        Raises:
            UsageError: the model can't draw images of the size.
        """
        import torch

        from xattn.models.sizes import size_factor

        # drawn on the CPU: the same noise on every device
        found: dict[str, Any] = {"generator": torch.Generator().manual_seed(self.seed)}
        if self.size is not None:
            factor = size_factor(pipe)
            if any(side % factor for side in self.size):
                height, width = self.size
                raise UsageError(f"--size {width}x{height}: both must be multiples of {factor}")
            found["height"], found["width"] = self.size
        if self.steps is not None:
            found["num_inference_steps"] = self.steps
        if self.guidance is not None:
            found["guidance_scale"] = self.guidance
        if self.negative is not None:
            found["negative_prompt"] = self.negative
        return found

    def facts(self, pipe: Any) -> dict[str, Any]:
        """Return the request as plain JSON values."""
        return {
            "model": self.model or "toyland",
            "device": str(pipe._execution_device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "seed": self.seed,
        }


@dataclass
class Watch:
    """The steps of a run as they pass, for those who wait.

    Attributes:
        advance: called with the number of steps done and to do.
        done: the steps done.
    """

    advance: Callable[[int, int], None]
    done: int = 0

    def __call__(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """Count a step; the pipeline calls this as ``callback_on_step_end``."""
        self.done = step + 1
        self.advance(self.done, int(getattr(pipe, "num_timesteps", 0)))
        return {}


@contextmanager
def watched(console: Console, label: str) -> Iterator[Watch]:
    """Show a progress bar while the block samples with the watch as its callback.

    Raises:
        UsageError: a ValueError came before the first step: it is about what was asked for.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(label, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total or None)

        watch = Watch(advance)
        try:
            yield watch
        except ValueError as error:
            if watch.done:
                raise
            raise UsageError(str(error)) from error
