"""The app's service on a tiny pipeline, and the app itself, served by its command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import tiny
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
    command = [sys.executable, "-m", "xattn.cli", "app", "--port", str(port)]
    command += ["--max-steps", "20", "--max-side", "128", "--max-edits", "2", *options]
    env = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = (temporary.parent / f"{temporary.name}.log").open("w+")
    with (
        log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env) as server,
    ):
        assert server.stdout is not None
        said = server.stdout.readline()
        log.seek(0)
        assert said.startswith("xattn: http://127.0.0.1:"), said + log.read()
        try:
            yield said.split()[1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
        log.seek(0)
        assert "Traceback" not in log.read()
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
