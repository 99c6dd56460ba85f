"""The comparison with diffusers' own tests, on a checkout that stands for theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import against_diffusers
from tests.processes import code_of, run_pytest, start

THEIRS = """
import pytest, torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2)

def run(model):
    torch.manual_seed(1)
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8)
    with torch.no_grad():
        return model(sample, 3, states).sample

def test_slices_agree():
    model = unet()
    plain = run(model)
    model.set_attention_slice(1)
    torch.testing.assert_close(plain, run(model), atol=1e-5, rtol=0)

def test_processors_agree():
    model = unet()
    plain = run(model)
    model.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(plain, run(model), atol=1e-5, rtol=0)
    model.set_default_attn_processor()
    torch.testing.assert_close(plain, run(model), atol=1e-5, rtol=0)

def test_attention_processor_dict():
    model = unet()
    assert all(type(p) == AttnProcessor2_0 for p in model.attn_processors.values())

def test_that_needs_the_hub():
    raise OSError("offline")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    (tmp_path / "tests" / "test_theirs.py").write_text(THEIRS)
    return tmp_path


def forked(words: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run pytest in a process that has imported diffusers before."""
    return f"exit code {code_of(start(run_pytest, words, folder, dict(environment)))}"


def test_their_tests_pass_alike_with_and_without(checkout: Path) -> None:
    files = ["tests/test_theirs.py"]
    plain, count = against_diffusers.passed(checkout, files, plugin=False, run=forked)
    wrapped, _ = against_diffusers.passed(checkout, files, plugin=True, run=forked)
    assert count == 4
    assert {name.split("::")[1] for name in plain} == {
        "test_slices_agree",
        "test_processors_agree",
        "test_attention_processor_dict",
    }
    # the one that compares types shows that the wrapper was there
    assert {name.split("::")[1] for name in plain - wrapped} == {"test_attention_processor_dict"}


def test_tests_are_run_by_a_process_of_their_own(tmp_path: Path) -> None:
    told = "def test_good(): pass\ndef test_bad(): assert 0\n"
    (tmp_path / "test_two.py").write_text(told)
    good, count = against_diffusers.passed(tmp_path, ["test_two.py"], plugin=False)
    assert (count, good) == (2, {"test_two::test_good"})


def test_a_folder_without_their_tests_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert against_diffusers.main([str(tmp_path)]) == 2
    assert "is it a checkout" in capsys.readouterr().out
