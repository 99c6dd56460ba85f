"""The table of denoisers is complete: a new class of diffusers shows up here as red."""

from __future__ import annotations

import diffusers.models
import pytest
from packaging.version import Version
from torch import nn

from tests import denoisers
from xattn.models import FAMILIES, family_of
from xattn.models.denoisers import RECORDED, REFUSED, SINCE, UNEDITED

INSTALLED = Version(diffusers.__version__)


def classes_of_diffusers() -> set[str]:
    """Return the names of all transformers and UNets in diffusers' own list."""
    lists = diffusers.models._import_structure.items()
    return {
        name
        for module, names in lists
        if module.startswith(("transformers.", "unets."))
        for name in names
    }


def test_every_denoiser_class_of_diffusers_has_a_row() -> None:
    missing = classes_of_diffusers() - RECORDED.keys() - REFUSED.keys()
    assert not missing, f"give {sorted(missing)} a line each in xattn/models/denoisers.py"


def test_a_row_names_a_class_that_there_is_and_only_once() -> None:
    assert not RECORDED.keys() & REFUSED.keys()
    if Version("0.42") <= INSTALLED:  # older ones have fewer
        assert RECORDED.keys() | REFUSED.keys() == classes_of_diffusers()


def test_the_installed_diffusers_has_the_recorded_classes_since_it_should() -> None:
    late = {name for name, since in SINCE.items() if Version(since) > INSTALLED}
    assert RECORDED.keys() - classes_of_diffusers() == late


def test_the_recorded_classes_are_those_of_the_families() -> None:
    classes = {name for family in FAMILIES for name in family.classes}
    assert {name for name in classes if "ControlNet" not in name} == RECORDED.keys()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refusal_says_why(name: str) -> None:
    model = type("Derived", (type(name, (nn.Module,), {"down_blocks": ()}),), {})()
    with pytest.raises(TypeError) as caught:
        family_of(model)
    assert f"Derived is not a supported denoiser: {REFUSED[name]}; the" in str(caught.value)


def test_a_family_that_isnt_edited_says_why() -> None:
    assert {family.classes[0] for family in FAMILIES if not family.edits} == UNEDITED.keys()


def test_the_page_has_the_table_as_it_is() -> None:
    text = denoisers.PAGE.read_text(encoding="utf-8")
    assert text == denoisers.written(text), "run python -m tests.denoisers"
