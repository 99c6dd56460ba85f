"""Processes that draw a batch: children of a clean one that has no threads, so forking is safe.

A fork of the tests' own process can hang for good: what its other threads (a server's, OpenMP's)
held at that moment stays locked in the child. So the children come from multiprocessing's fork
server, which imports all they need once (``tests.warm``) and stays idle: a child starts in
milliseconds, and a test can kill as many as it likes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SECONDS = 300  # after which a child has hung


def start(work: Callable[..., Any], *args: Any, **kwargs: Any) -> ForkServerProcess:
    """Starts a function of this module in a child."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # for the server, which starts with the first child
    try:
        child = context.Process(target=work, args=args, kwargs=kwargs)
        child.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return child


def code_of(child: ForkServerProcess) -> int:
    """Waits for a child, and gives its exit code; one that hangs is killed."""
    child.join(SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise TimeoutError(f"a child hung: {child}")
    return child.exitcode


def together(work: Callable[..., Any], processes: int, *args: Any, **kwargs: Any) -> list[int]:
    """Runs a function of this module in several processes of one group; gives their codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        start(_ranked, work, rank, processes, port, args, kwargs) for rank in range(processes)
    ]
    return [code_of(child) for child in children]


def _ranked(
    work: Callable[..., Any],
    rank: int,
    processes: int,
    port: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    work(*args, **kwargs)


# -- what they do --------------------------------------------------------------------------------


def draw(
    items: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    resume: bool = False,
    failing: Sequence[int] = (),
    drawn: int | None = None,
    largest_file: int | None = None,
) -> None:
    """Draws items, two at a time, and exits with 1 unless it ends as it should.

    Args:
        items: what to draw.
        out: the batch's folder.
        resume: whether to go on with it.
        failing: the lines that should fail.
        drawn: how many items should be drawn, where that is known.
        largest_file: the bytes after which a file can't grow, as on a disk that is full.
    """
    from tests import tiny
    from xattn import batch
    from xattn.batch.processes import Crew

    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    with Crew():
        report = batch.run(tiny.sd1(), items, out, batch_size=2, resume=resume)
    lines = [failure.line for failure in report.failures]
    if lines != list(failing) or drawn not in (None, report.drawn):
        raise SystemExit(f"{report}: {report.failures}")
    if largest_file is not None:
        for failure in report.failures:
            assert (
                os.strerror(errno.EFBIG) in failure.message
                or "safetensors" in failure.message.lower()
            )


def refused(items: Sequence[Mapping[str, Any]], out: Path, message: str) -> None:
    """Exits with 1 unless the batch is refused, in every process, with this message."""
    from tests import tiny
    from xattn import batch
    from xattn.batch.processes import Crew

    try:
        with Crew():
            batch.run(tiny.sd1(), items, out)
    except ValueError as error:
        if message in str(error):
            return
    raise SystemExit("it was not refused")


def leave(out: Path) -> None:
    """Work the longer the higher the rank, and exit with 1 if another still works afterwards."""
    from xattn.batch.processes import Crew

    with Crew() as crew:
        time.sleep(0.2 * crew.state.process_index)
        (out / str(crew.state.process_index)).touch()
    if len(list(out.iterdir())) < crew.size:
        raise SystemExit("it left before the others")


def fail_alone() -> None:
    """Exit with 1 in the second process, whose error nobody waits for, and in the others."""
    from xattn.batch.processes import Crew

    with Crew() as crew:
        if crew.state.process_index == 1:
            raise SystemExit(1)


def typed(words: Sequence[str], message: str) -> None:
    """Exit with 1 unless the command refuses its words with this message."""
    from xattn.cli import main

    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            main(words)
        except SystemExit as end:
            if end.code == 2 and message in told.getvalue():
                return
    raise SystemExit(f"it was not refused: {told.getvalue()}")


def command(words: Sequence[str], printed: Path, environment: Mapping[str, str]) -> None:
    """Run a command, whose output goes to ``printed`` with .out and .err behind it."""
    from xattn.cli import main

    os.environ.update(environment)
    tempfile.tempdir = None  # to be read from the environment again
    for number, ending in ((1, ".out"), (2, ".err")):
        with printed.with_suffix(ending).open("w") as file:
            os.dup2(file.fileno(), number)
    main(words)


def run_pytest(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
    """Exit with pytest's code for the tests of another folder, whose ``tests`` isn't this one."""
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    raise SystemExit(pytest.main(list(words)))
