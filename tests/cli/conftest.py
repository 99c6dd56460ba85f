"""A command as a user types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def xattn_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A function of a command's words: its exit code, stdout and stderr in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str, str]:
        from xattn.cli import main

        with pytest.raises(SystemExit) as end:
            main(words)
        told = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), told.out, told.err

    return run
