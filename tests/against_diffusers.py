"""Runs diffusers' own tests with and without xattn around every processor, and compares.

    python tests/against_diffusers.py PATH_TO_A_CHECKOUT_OF_DIFFUSERS [TEST_FILE ...]

The checkout has to be of the diffusers version that is installed. Nothing is downloaded; tests
that need the hub fail alike in both runs. The exit code is 1 when a test that passes without
xattn doesn't pass with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent

FILES = (
    "tests/models/unets/test_models_unet_2d_condition.py",
    "tests/pipelines/stable_diffusion/test_stable_diffusion.py",
)

ALLOWED = ("test_attention_processor_dict",)
"""Tests that compare ``type(processor)``: a wrapper can't and shouldn't pass them."""


def in_a_process(words: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run pytest in a new process; return what it printed."""
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return f"{done.stdout}\n{done.stderr}"


Pytest = Callable[[list[str], Path, Mapping[str, str]], str]


def passed(
    checkout: Path, files: list[str], plugin: bool, run: Pytest = in_a_process
) -> tuple[set[str], int]:
    """Return the names of the tests that pass, and how many were run."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", *files]
        if plugin:
            words += ["-p", "tests_of_xattn.diffusers_plugin"]
            link = Path(folder) / "tests_of_xattn"  # "tests" is the checkout's own package
            link.mkdir()
            (link / "__init__.py").touch()
            (link / "diffusers_plugin.py").symlink_to(ROOT / "tests" / "diffusers_plugin.py")
        paths = [folder, str(checkout), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HF_HUB_OFFLINE": "1",
        }
        printed = run(words, checkout, environment)
        if not report.exists():
            raise SystemExit(f"pytest gave no report:\n{printed}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    good = {
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is None and case.find("error") is None
        and case.find("skipped") is None
    }  # fmt: skip
    return good, len(cases)


def main(arguments: list[str]) -> int:
    """Compares the two pass sets and says what differs."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    checkout = Path(arguments[0]).resolve()
    files = arguments[1:] or [name for name in FILES if (checkout / name).exists()]
    if not files:
        print(f"none of {', '.join(FILES)} is in {checkout}: is it a checkout of diffusers?")
        return 2
    plain, count = passed(checkout, files, plugin=False)
    wrapped, _ = passed(checkout, files, plugin=True)
    lost = sorted(name for name in plain - wrapped if not name.endswith(ALLOWED))
    print(f"{count} tests; {len(plain)} pass without xattn, {len(wrapped)} with it")
    for name in lost:
        print(f"lost: {name}")
    for name in sorted(wrapped - plain):
        print(f"won: {name}")
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
