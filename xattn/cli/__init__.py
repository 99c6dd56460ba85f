"""The command line: ``xattn demo``, ``record``, ``why``, ``edit``, ``show`` and others."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

NEEDED = {"typer", "rich", "click", "shellingham"}
STOPPED = "interrupted; what was written before stays"
INTERRUPTED = 130  # as shells count it: 128 and the signal's number


class UsageError(ValueError):
    """A call that names something that isn't there or can't be; found before anything is drawn."""

    exit_code = 2


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    The exit code is 0 when done, 1 when it failed while running, 2 when it was called wrongly, 130
    when it was interrupted. An error is one line on stderr; ``--debug`` shows where it comes from.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        from xattn.cli.commands import app
    except KeyboardInterrupt:
        complain(STOPPED)
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as missing:
        if missing.name not in NEEDED:
            raise
        complain(
            f"the command line needs {missing.name}, which isn't installed; run: "
            'pip install "xattn[cli]"'
        )
        sys.exit(1)
    debug = "--debug" in words
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            code = app(words, prog_name="xattn", standalone_mode=False)
        if code == INTERRUPTED:  # typer makes this of control-C, and prints nothing
            complain(STOPPED)
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        complain(STOPPED)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # somebody reads only the first lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(message_of(error))
        sys.exit(exit_code_of(error))


def complain(message: str) -> None:
    """Write one line about what went wrong to stderr."""
    print(f"xattn: {' '.join(message.split())}", file=sys.stderr)


def message_of(error: BaseException) -> str:
    """Return an error's own message, with its type where the message alone is not enough."""
    told = getattr(error, "format_message", None)  # typer's own: a wrong call
    if told is not None:
        context = getattr(error, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context is not None else ""
        return f"{told() or 'give a command'}{hint}"
    text = str(error).strip()
    said = isinstance(error, ValueError | OSError | MemoryError | TypeError | RuntimeError)
    return text if said and text else f"{type(error).__name__}: {text}"


def exit_code_of(error: BaseException) -> int:
    """Return 2 for a wrong call, 1 for anything that failed."""
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1
