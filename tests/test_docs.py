"""The pages say what is true: every snippet runs, every command parses, every link leads there.

Snippets run with the tiny pipelines in place of the bundled model and of the hub's, on the CPU.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import xattn
from tests import tiny

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sdxl"
    tiny.sdxl().save_pretrained(folder, variant="fp16")
    return folder


def stand_in(text: str, sdxl: Path) -> str:
    """Put small things in the place of large ones: models, steps, precisions, devices."""
    text = re.sub(r"(num_inference_steps(?:=|\": )|set_timesteps\()\d\d", r"\g<1>4", text)
    for large, little in {
        "xattn.demo()": "bundled()",
        "steps=[0, 5, 10, 19]": "steps=[0, 1, 2, 3]",
        "callback_on_step_end=": "num_inference_steps=4, callback_on_step_end=",
        '"stabilityai/stable-diffusion-xl-base-1.0"': repr(str(sdxl)),
        "dtype=torch.float16": "dtype=torch.float32",
        '"cuda"': '"cpu"',
        "enable_model_cpu_offload()": 'enable_model_cpu_offload(device="cpu")',
    }.items():
        text = text.replace(large, little)
    return text


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[int, str] = {}

    def say(*values: object) -> None:
        said[sys._getframe(1).f_lineno] = " ".join(map(str, values))

    names: dict[str, Any] = {"bundled": lambda: quiet(tiny.sd1()), "print": say}
    for number, block in enumerate(blocks(page, "python"), start=1):
        where = f"{page.name}, snippet {number}"
        said.clear()
        exec(compile(stand_in(block, model_folder), where, "exec"), names)
        for line, answer in answers(block).items():
            assert answered(answer, said[line]), f"{where}, line {line}: {said[line]}"


def answers(block: str) -> dict[int, str]:
    """The values in comments behind a print, by their lines; ... stands for anything."""
    found = re.compile(r"""^ *print\(.*\)  # ((?:[\[({'"\d]|\.\.\. ).*)$""")
    lines = enumerate(block.splitlines(), start=1)
    return {number: match[1] for number, line in lines if (match := found.match(line))}


def answered(answer: str, said: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in answer.split("..."))
    return re.fullmatch(pattern, said, re.DOTALL) is not None


def test_answers_are_the_values_behind_a_print() -> None:
    block = "x = 1  # one\nprint(x)  # 1\nprint(x)  # a number\n    print((x, x))  # (1, ...)\n"
    assert answers(block) == {2: "1", 4: "(1, ...)"}
    assert answered("(1, ...)", "(1, 1)")
    assert not answered("(1, ...)", "(2, 1)")
    assert not answered("a (b", "a (b c")


@pages
def test_every_command_of_a_page_is_one_that_there_is(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("typer")
    from typer.main import get_command

    from xattn.cli.commands import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").touch()
    group: Any = get_command(app)
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    for line in lines:
        for part in re.split(r"&&", line.partition(" #")[0]):
            words = shlex.split(part)
            if words[:1] != ["xattn"]:
                continue
            assert words[1] in group.commands, line
            command = group.commands[words[1]]
            with command.make_context(words[1], words[2:]) as context:
                assert context.params, line


@pages
def test_every_link_and_picture_is_there(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pages
def test_pages_speak_of_the_repository_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/", text)


def test_the_readme_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 'pip install -c constraints.txt -e ".[cli]" && xattn demo\n' in text
    assert 'pip install -c constraints.txt -e ".[dev]" && python -m pytest -n 2\n' in text


def test_the_page_of_costs_has_its_marks() -> None:
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    begin, end = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
    assert text.count(begin) == text.count(end) == 1
    assert text.index(begin) < text.index(end)


def test_every_page_is_in_the_menu_and_in_the_readme() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in menu
        assert f"(docs/{page.name})" in readme or page.name == "index.md"


def test_the_first_page_is_the_readme_as_seen_from_the_docs() -> None:
    hook = runpy.run_path(str(ROOT / ".ci/first_page.py"))["on_page_markdown"]
    first, other = (SimpleNamespace(file=SimpleNamespace(src_uri=u)) for u in ("index.md", "a.md"))
    assert hook("as it was", page=other) == "as it was"
    text = hook("<!-- a comment -->", page=first)
    assert text.startswith("# xattn\n")
    assert "](docs/" not in text
    for target in LINK.findall(text):
        if not target.startswith("https://"):
            assert (ROOT / "docs" / target).exists(), target


@pages
def test_every_test_that_a_page_names_is_one_that_there_is(page: Path) -> None:
    there = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in there, name


@pages
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:xattn|processors|tests|benchmarks|docs)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name


def texts_of(path: Path) -> Iterator[str]:
    """Yield a module's strings, with a line break for each value that an f-string puts in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_error_of_troubleshooting_is_one_that_the_code_raises() -> None:
    modules = [path for top in ("xattn", "processors") for path in (ROOT / top).rglob("*.py")]
    known = [text for path in modules for text in texts_of(path)]
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(messages) == page.count("\n### ")
    for message in messages:
        parts = message.split("...")
        assert any(in_order(parts, text) for text in known), message


def in_order(parts: list[str], text: str) -> bool:
    """Return whether parts stand in a text, one behind another."""
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def test_everything_in_the_reference_is_where_it_says() -> None:
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert "xattn.record" in named
    for path in named:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        assert found.__doc__, path
        if module.count(".") > 1:  # a name of a package may come from any of its modules
            assert found.__module__ == module, path
    for name in set(xattn.__all__) - {"__version__"}:
        assert f"::: xattn.{name}\n" in text or name == "batch", name


def test_the_fields_of_a_batchs_items_are_those_that_there_are() -> None:
    from xattn.batch.items import Item, read_items

    page = ROOT / "docs/batches.md"
    table = page.read_text(encoding="utf-8").partition("| field |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(field.name for field in fields(Item))
    for block in blocks(page, "json"):
        good, failures = read_items([json.loads(line) for line in block.splitlines()])
        assert good
        assert failures == []
    edits = re.findall(r"`(\{[^`]+\})`", page.read_text(encoding="utf-8"))
    assert len(edits) > 4
    for text in edits:
        assert Item.from_json({"prompt": "a red car", "edits": [json.loads(text)]}).edits
