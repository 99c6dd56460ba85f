"""What a recording keeps, and where: devices are told from folders by what can hold memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xattn.records.options import place


@pytest.mark.parametrize("name", ["meta", "lazy", "xla", "xla:0", "ipu", "maps", "./cpu", "a/b"])
def test_a_name_without_memory_here_is_a_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(name) == tmp_path / name


@pytest.mark.parametrize("to", ["cpu", torch.device("cpu")], ids=["text", "device"])
def test_the_cpu_is_a_device(to: str | torch.device) -> None:
    assert place(to) == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_a_device() -> None:
    assert place("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("to", ["cuda:99", "xpu:99", "mps:99"])
def test_an_accelerator_that_is_not_here_is_not_made_a_folder(to: str) -> None:
    with pytest.raises(ValueError, match=rf"to='{to}'.*cannot hold maps here.*to='./{to}'"):
        place(to)


@pytest.mark.parametrize("kind", ["meta", "xla"])
def test_a_torch_device_without_memory_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"type='{kind}'.*cannot hold maps"):
        place(torch.device(kind))


def test_a_path_is_a_folder_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(Path("cpu")) == tmp_path / "cpu"
