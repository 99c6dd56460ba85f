"""The family of UNets, on models of a few modules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.fakes import layer
from xattn.models import family_of, family_of_pipeline
from xattn.models.family import choose, matches
from xattn.models.unet import UNets, text_states

UNETS = UNets()


class Attn(nn.Module):
    def __init__(self, cross: bool | None, *, added: int | None = None) -> None:
        super().__init__()
        self.heads = 2
        self.added_kv_proj_dim = added
        if cross is not None:
            self.is_cross_attention = cross


class Block(nn.Module):
    def __init__(self, *attentions: Attn, sampler: str = "") -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        if sampler:
            setattr(self, sampler, nn.ModuleList([nn.Identity()]))


class UNet2DConditionModel(nn.Module):
    """Two grids on the way down, one in the middle, two on the way up."""

    def __init__(self) -> None:
        super().__init__()
        down, up = "downsamplers", "upsamplers"
        self.down_blocks = nn.ModuleList([Block(Attn(False), Attn(True), sampler=down), Block()])
        self.mid_block = Block(Attn(None, added=8))
        self.up_blocks = nn.ModuleList([Block(Attn(True), sampler=up), Block(Attn(True))])
        self.time = Attn(None)  # attention that diffusers lists and nobody reads text by

    @property
    def attn_processors(self) -> dict[str, Any]:
        attentions = [name for name, m in self.named_modules() if isinstance(m, Attn)]
        return {f"{name}.processor": None for name in attentions}


def test_layers_have_a_name_a_role_and_a_depth() -> None:
    found = UNETS.layers(UNet2DConditionModel())
    assert [(found.name, found.role, found.depth) for found in found] == [
        ("down_blocks.0.attentions.0", "self", 0),
        ("down_blocks.0.attentions.1", "cross", 0),
        ("mid_block.attentions.0", "added", 1),
        ("up_blocks.0.attentions.0", "cross", 1),
        ("up_blocks.1.attentions.0", "cross", 0),
    ]
    assert {each.heads for each in found} == {2}
    assert [each.reads_text for each in found] == [False, True, True, True, True]


def test_a_components_layers_bear_its_name() -> None:
    first = UNETS.layers(UNet2DConditionModel(), "controlnet.")[0]
    assert first.name == "controlnet.down_blocks.0.attentions.0"
    assert first.component == "controlnet."


def test_layers_are_those_of_a_compiled_model_too() -> None:
    unet = UNet2DConditionModel()
    compiled = nn.Module()
    compiled._orig_mod = unet  # as torch.compile keeps it
    assert [one.module for one in UNETS.layers(compiled)] == [
        one.module for one in UNETS.layers(unet)
    ]
    assert family_of(compiled) == UNETS


@pytest.mark.parametrize(
    ("latent", "depth", "grid"),
    [((8, 12), 0, (8, 12)), ((8, 12), 2, (2, 3)), ((9, 13), 1, (5, 7)), ((9, 13), 3, (2, 2))],
)
def test_each_halving_of_a_grid_rounds_up(latent: Any, depth: int, grid: Any) -> None:
    assert UNETS.grid(layer(depth=depth), latent) == grid


def test_a_call_is_read_by_its_arguments_names() -> None:
    sample, states = torch.zeros(4, 9, 8, 12), torch.zeros(4, 77, 3)
    given = {"sample": sample, "timestep": 7, "encoder_hidden_states": (states, [object()])}
    call = UNETS.read(given, "controlnet.")
    assert call.sample is sample
    assert call.states is states  # IP-Adapter's images stand beside them
    assert (call.latent, call.rows) == ((8, 12), 4)
    assert (call.timestep, call.component) == (7, "controlnet.")


def test_videos_are_refused() -> None:
    with pytest.raises(RuntimeError, match="5 axes"):
        UNETS.read({"sample": torch.zeros(1, 4, 2, 8, 8), "timestep": 7})


def test_states_that_are_no_tensor_are_none() -> None:
    assert text_states(None) is None
    assert text_states(("text",)) is None


def test_what_encode_prompt_returned_is_read() -> None:
    encoded = UNETS.encoded(("positive", "negative", "pooled"))
    assert (encoded.positive, encoded.negative) == ("positive", "negative")  # type: ignore[comparison-overlap]
    assert UNETS.encoded(("positive",)).negative is None


def test_tokenizers_that_a_pipeline_has_share_one_axis() -> None:
    def convert(text: str, tokenizer: Any) -> str:
        return text

    both = SimpleNamespace(tokenizer="one", tokenizer_2="two", maybe_convert_prompt=convert)
    (axis,) = UNETS.axes(both)
    assert (axis.tokenizers, axis.convert) == (("one", "two"), convert)
    (axis,) = UNETS.axes(SimpleNamespace(tokenizer=None, tokenizer_2="two"))
    assert (axis.tokenizers, axis.convert) == (("two",), None)


@pytest.mark.parametrize(
    ("kind", "clean"), [("epsilon", 2.4 / 0.6), ("v_prediction", 1.92 - 0.8), ("sample", 1.0)]
)
def test_clean_latents_follow_from_each_kind_of_prediction(kind: str, clean: float) -> None:
    """At alpha 0.36 the signal's share is 0.6 and the noise's 0.8."""
    alphas = torch.tensor([0.9, 0.36])
    scheduler = SimpleNamespace(alphas_cumprod=alphas, config={"prediction_type": kind})
    sample, output = torch.full((1, 9, 2, 2), 3.2), torch.ones(1, 4, 2, 2)
    got = UNETS.clean(scheduler, sample, output, 1.0)
    torch.testing.assert_close(got, torch.full((1, 4, 2, 2), clean))


def test_clean_latents_need_a_schedules_noise() -> None:
    with pytest.raises(ValueError, match="previews=True does not work with SimpleNamespace"):
        UNETS.clean(SimpleNamespace(), torch.zeros(1), torch.zeros(1), 1.0)


# -- the table of families -------------------------------------------------------------------------


class Derived(UNet2DConditionModel):
    pass


class HomeMade(nn.Module):
    down_blocks = ()


def test_families_are_known_by_class_by_base_class_or_by_layout() -> None:
    for model in (UNet2DConditionModel(), Derived(), HomeMade()):
        assert family_of(model) == UNETS
    with pytest.raises(
        TypeError, match=r"Identity is not a supported denoiser.* UNet2DConditionModel"
    ):
        family_of(nn.Identity())


def test_a_model_with_another_layout_has_no_layers_that_are_known() -> None:
    with pytest.raises(TypeError, match="HomeMade is not a supported denoiser"):
        UNETS.layers(HomeMade())


def test_a_pipeline_without_a_denoiser_or_a_text_encoder_is_refused() -> None:
    pipe = SimpleNamespace(unet=UNet2DConditionModel(), encode_prompt=len)
    assert family_of_pipeline(pipe) == UNETS
    assert UNETS.denoisers(pipe) == (pipe.unet,)
    for bad in (SimpleNamespace(unet=pipe.unet), SimpleNamespace(unet=None, encode_prompt=len)):
        with pytest.raises(TypeError, match=r"SimpleNamespace .*xattn\.Loop"):
            family_of_pipeline(bad)


# -- choosing layers -------------------------------------------------------------------------------

LAYERS = [layer("down.0.attn1", "self"), layer("down.0.attn2"), layer("up.1.attn2", "joint")]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (None, ["down.0.attn2", "up.1.attn2"]),
        ("down.0", ["down.0.attn2"]),
        ("*attn2", ["down.0.attn2", "up.1.attn2"]),
        (["up.*", "down.*"], ["down.0.attn2", "up.1.attn2"]),
    ],
)
def test_layers_that_read_text_are_chosen_by_name(wanted: Any, names: list[str]) -> None:
    assert [each.name for each in choose(LAYERS, wanted)] == names
    assert not matches("down.01.attn2", "down.0")


@pytest.mark.parametrize("wanted", ["down.0.attn1", ["up.*", "middle"], []])
def test_a_name_that_matches_nothing_lists_the_layers(wanted: Any) -> None:
    with pytest.raises(ValueError, match=r"does not match any layer; .* down\.0\.attn2, up\.1"):
        choose(LAYERS, wanted)
    with pytest.raises(ValueError, match="no layers that attend to text"):
        choose(LAYERS[:1], None)
