"""Heat maps are exactly the definition's, and what was not kept is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.runs import LAYERS, make_run, tensors_of
from xattn.maps import daam, select
from xattn.records.run import Layer, MemoryStore, Run
from xattn.text.prompt import Prompt


def dense(
    run: Any,
    positions: Any,
    image: Any = 0,
    steps: Any = None,
    layers: Any = None,
    heads: Any = None,
) -> Any:
    """The definition, one number at a time: no code shared with the library."""
    steps = range(run.done) if steps is None else steps
    layers = [0, 1, 3] if layers is None else layers  # neither the middle nor an eighth
    word = np.zeros(run.latent)
    for position in positions:
        token = run.positions.index(position)
        for n in layers:
            probs = run.store.tensors[n].double().numpy()
            used = range(probs.shape[2]) if heads is None else heads
            total = sum(probs[s, image, h, token] / len(used) for s in steps for h in used)
            sized = F.interpolate(
                torch.tensor(total)[None, None], run.latent, mode="bicubic", align_corners=False
            )[0, 0].numpy()
            word += np.maximum(sized, 0) / len(layers) / len(positions)
    return word


def test_a_heat_map_is_the_definition_computed_densely() -> None:
    run = make_run(["a red car", "a blue boat"], images=2)
    for image in range(4):
        got = daam.token_maps(run, [2, 3], image).mean(0)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got, dense(run, [2, 3], image), atol=1e-6)
        every = daam.token_maps(run, [2, 3], image, layers="all").mean(0)
        np.testing.assert_allclose(every, dense(run, [2, 3], image, layers=range(4)), atol=1e-6)


def test_steps_layers_and_heads_select() -> None:
    run = make_run(steps=5)
    got = daam.token_maps(run, [2], steps=[0, -1], layers="up_blocks.*", heads=1)[0]
    np.testing.assert_allclose(got, dense(run, [2], steps=[0, 4], layers=[3], heads=[1]), atol=1e-6)
    got = daam.token_maps(run, [2], steps=slice(1, 3), layers=lambda x: x.grid == (4, 6))[0]
    np.testing.assert_allclose(got, dense(run, [2], steps=[1, 2], layers=[1]), atol=1e-6)
    one = daam.token_maps(run, [2], steps=np.int64(3))
    assert torch.equal(one, daam.token_maps(run, [2], steps=range(3, 4)))


def test_the_default_takes_the_papers_layers() -> None:
    run = make_run()
    assert torch.equal(daam.token_maps(run, [2]), daam.token_maps(run, [2], layers="daam"))


def test_daam_leaves_out_the_middle_block_and_grids_of_an_eighth() -> None:
    run = make_run()
    assert select.layers_of(run, "daam") == ([0, 1, 3], [1 / 3] * 3)
    deep = [Layer(f"down_blocks.{i}.attn2", (s, s), 8) for i, s in enumerate((64, 32, 16, 8))]
    odd = [Layer("up_blocks.0.attn2", (9, 17), 8), Layer("up_blocks.1.attn2", (17, 33), 8)]
    assert [select.daam_layers(x, (64, 64)) for x in deep] == [True, True, True, False]
    assert [select.daam_layers(x, (65, 129)) for x in odd] == [False, True]
    sdxl_middle = Layer("mid_block.attentions.0.transformer_blocks.0.attn2", (32, 32), 20)
    assert not select.daam_layers(sdxl_middle, (128, 128))


def test_maps_of_steps_sum_to_the_map_where_nothing_is_clamped() -> None:
    run = make_run(layers=LAYERS[:1], steps=4)  # on the latent grid: bicubic is the identity
    whole = daam.token_maps(run, [1, 3])
    steps = daam.step_token_maps(run, [1, 3])
    assert steps.shape == (4, 2, 8, 12)
    torch.testing.assert_close(steps.sum(0), whole)


def test_heads_average_to_the_layer() -> None:
    run = make_run()
    heads = daam.head_maps(run, 1, [2, 3], steps=[0, 2])
    assert heads.shape == (2, 2, 4, 6)
    torch.testing.assert_close(heads.mean(0), daam.layer_maps(run, 1, [2, 3], steps=[0, 2]))


def test_dropped_axes_give_the_same_map() -> None:
    run = make_run(steps=4)
    means = tuple(t.mean((0, 2), keepdim=True) for t in tensors_of(run))
    dropped = Run(**{**vars(run), "store": MemoryStore(means), "keep": frozenset({"layer"})})
    torch.testing.assert_close(daam.token_maps(dropped, [2, 3]), daam.token_maps(run, [2, 3]))
    assert daam.step_layer_maps(dropped, 0, [2]).shape == (1, 1, 8, 12)


def test_a_mean_of_layers_counts_as_many_times_as_it_has_members() -> None:
    run = make_run(layers=(LAYERS[0], LAYERS[3], LAYERS[1]))
    pair = Layer("mean@8x12", (8, 12), 2, (LAYERS[0].name, LAYERS[3].name))
    tensors = tensors_of(run)
    mean = MemoryStore(((tensors[0] + tensors[1]) / 2, tensors[2]))
    merged = Run(**{**vars(run), "store": mean, "layers": (pair, LAYERS[1])})
    torch.testing.assert_close(daam.token_maps(merged, [2]), daam.token_maps(run, [2]))


def test_a_part_of_a_mean_of_layers_is_refused() -> None:
    pair = Layer("mean@8x12", (8, 12), 2, (LAYERS[0].name, LAYERS[3].name))
    run = make_run(layers=(pair,))
    with pytest.raises(ValueError, match=r"'layer' in keep="):
        select.layers_of(run, "up_blocks.*")
    assert select.layers_of(run, ["up_blocks.*", "down_blocks.*"])[0] == [0]


@pytest.mark.parametrize(
    ("keep", "options", "message"),
    [
        (["layer"], {"steps": 0}, r"step axis was averaged .* 'step' in keep="),
        (["step"], {"heads": 0}, r"head axis was averaged .* 'head' in keep="),
        (["step"], {"steps": 3}, r"steps: 3 is out of range, there are 3"),
        (["step"], {"steps": [0, -4]}, r"steps: -4 is out of range"),
        (["step"], {"steps": slice(5, 9)}, r"does not select any of the 3 steps"),
        (["step"], {"steps": []}, r"does not select any of the 3 steps"),
        (["step", "head"], {"heads": 2}, r"heads of down_blocks.* 2 is out of range"),
        (["step", "head"], {"heads": []}, r"does not select any head"),
        (["step"], {"layers": "nothing"}, r"does not match any layer; the layers are: down_blocks"),
        (["step"], {"layers": ["up_blocks.*", "typo"]}, r"layers='typo' does not match any layer"),
        (["step"], {"steps": "10"}, r"steps='10': expected an index or several, integers"),
        (["step"], {"steps": 1.7}, r"steps=1\.7: expected an index"),
        (["step", "head"], {"heads": [0, 0.5]}, r"heads=\[0, 0\.5\]: expected an index"),
        (["step"], {"image": 1}, r"image: 1 is out of range, there are 1"),
    ],
)
def test_what_is_not_there_is_a_clear_error(keep: Any, options: Any, message: Any) -> None:
    with pytest.raises(ValueError, match=message):
        daam.token_maps(make_run(keep=keep), [2], **options)


def test_daam_says_when_it_finds_no_layer() -> None:
    with pytest.raises(ValueError, match=r"layers='daam' does not match .*mid_block.* \(1x2\)"):
        daam.token_maps(make_run(layers=LAYERS[2:3]), [2], layers="daam")


def test_the_default_falls_back_on_what_was_recorded() -> None:
    assert select.layers_of(make_run())[0] == [0, 1, 3]
    assert select.layers_of(make_run(layers=LAYERS[2:3])) == ([0], [1.0])


def test_only_complete_steps_count() -> None:
    run = make_run(steps=5, done=2)
    np.testing.assert_allclose(daam.token_maps(run, [2])[0], dense(run, [2]), atol=1e-6)
    with pytest.raises(ValueError, match="no step of this run is complete"):
        daam.token_maps(make_run(done=0), [2])


def test_half_precision_is_summed_in_float32() -> None:
    run = make_run(dtype=torch.float16, steps=50)
    got = daam.token_maps(run, [2])[0]
    np.testing.assert_allclose(got, dense(run, [2]), rtol=1e-5)


def test_words_are_found_among_those_kept() -> None:
    run = make_run(["a red car and a red boat"], words=[2, 3, 6, 7])
    assert select.kept_words(run) == ("red", "car", "boat")
    assert select.word_positions(run, "red") == (2, 6)
    assert select.word_positions(run, "red", occurrence=1) == (6,)
    assert select.word_positions(run, "red car") == (2, 3)
    assert select.word_positions(run, 3) == (3,)
    with pytest.raises(ValueError, match=r"'and' was not recorded; the words kept are: red, car"):
        select.word_positions(run, "and")
    with pytest.raises(ValueError, match="blue"):
        select.word_positions(run, "blue")


def test_each_image_has_its_own_prompt() -> None:
    run = make_run(["a red car", "a blue boat"], images=2)
    assert select.kept_words(run, 1) == ("a", "red", "car")
    assert select.kept_words(run, -1) == ("a", "blue", "boat")
    with pytest.raises(ValueError, match="red"):
        select.word_positions(run, "red", 2)


def test_a_prompt_of_embeddings_is_asked_by_position() -> None:
    run = make_run()
    blind = Run(**{**vars(run), "prompts": (Prompt.anonymous(77),)})
    assert select.kept_words(blind) == ()
    assert select.word_positions(blind, [2, 3]) == (2, 3)
    with pytest.raises(ValueError, match="not recorded"):
        select.word_positions(blind, 50)
