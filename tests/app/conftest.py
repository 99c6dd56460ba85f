"""The app's service on a tiny pipeline, and the app itself, served by its command."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests import tiny
from tests.processes import code_of, command, start
from xattn.app.drawing import Service
from xattn.app.settings import Limits


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tiny.sd1(), root=tmp_path, limits=Limits(steps=10, side=128, edits=2))


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves the app with a tiny pipeline."""
    model = tmp_path_factory.mktemp("model")
    tiny.sd1().save_pretrained(model)
    with served(tmp_path_factory.mktemp("temporary"), "--model", str(model)) as found:
        yield found


@contextmanager
def served(temporary: Path, *options: str) -> Iterator[str]:
    """Serve the app by its command while the block runs; see that it leaves no files."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["app", "--port", str(port)]
    words += ["--max-steps", "5", "--max-side", "128", "--max-edits", "2", *options]
    printed = temporary.parent / f"{temporary.name}.printed"
    server = start(command, words, printed, {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"})
    try:
        said = first_line(printed.with_suffix(".out"), server)
        log = printed.with_suffix(".err")
        assert said.startswith("xattn: http://127.0.0.1:"), said + log.read_text()
        yield said.split()[1]
        server.terminate()
        assert code_of(server) == 0
    finally:
        server.kill()
    assert "Traceback" not in log.read_text()
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def first_line(path: Path, child: ForkServerProcess) -> str:
    """Wait for the first line that a child prints; return what there is if it ends before."""
    while child.is_alive() and not (path.exists() and "\n" in path.read_text()):
        time.sleep(0.1)
    return path.read_text().partition("\n")[0] if path.exists() else ""
