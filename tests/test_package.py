"""What is installed: the right packages, and an ``import xattn`` that costs nothing."""

from __future__ import annotations

import re
import shutil
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
    training = {name for name in modules if name.startswith("xattn/toyland/training/")}
    assert training
    assert set(wheel) & modules == modules - training
    data = [
        p for p in (ROOT / "xattn").rglob("*") if p.suffix in {".safetensors", ".json", ".html"}
    ]
    assert {str(path.relative_to(ROOT)) for path in data} <= set(wheel)


def test_every_module_stands_on_a_floor_of_the_contract() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (layers,) = re.findall(r"^layers = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    named = re.findall(r"xattn\.(\w+)", layers)
    assert len(named) == len(set(named))
    tops = [path for path in (ROOT / "xattn").iterdir() if not path.name.startswith("_")]
    modules = {path.stem for path in tops if path.suffix == ".py"}
    packages = {path.name for path in tops if (path / "__init__.py").exists()}
    assert set(named) >= modules | packages | {"processors"}


def test_every_module_is_in_the_repository() -> None:
    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )

    if shutil.which("git") is None or git("rev-parse", "--show-prefix").stdout != "\n":
        pytest.skip("this is no checkout of the repository")
    tracked = set(git("ls-files", "-z").stdout.split("\0"))
    paths = [path for name in ("xattn", "processors") for path in (ROOT / name).rglob("*.py")]
    modules = {path.relative_to(ROOT).as_posix() for path in paths}
    assert {"xattn/__init__.py", "processors/__init__.py"} <= modules
    assert modules - tracked == set()


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
