"""What is installed: the right packages, and an ``import xattn`` that costs nothing."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from the tree."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        return archive.namelist()


def test_processors_are_installed_inside_the_package(wheel: list[str]) -> None:
    assert "xattn/processors/wrapping.py" in wheel
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"xattn"}


def test_the_wheel_has_types_weights_and_assets(wheel: list[str]) -> None:
    assert "xattn/py.typed" in wheel
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "xattn").rglob("*.py")}
    assert modules <= set(wheel)
    data = [
        p for p in (ROOT / "xattn").rglob("*") if p.suffix in {".safetensors", ".json", ".html"}
    ]
    assert {str(path.relative_to(ROOT)) for path in data} <= set(wheel)


def test_importing_xattn_is_light() -> None:
    code = (
        "import sys, xattn; "
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib', 'gradio', 'typer', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    import xattn

    assert xattn.__all__ == sorted(xattn.__all__)
    for name in xattn.__all__:
        assert getattr(xattn, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        xattn.nonsense  # noqa: B018
