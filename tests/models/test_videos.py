"""Families of videos: exact frames, maps (frames, height, width) of the dense softmax, words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests.models.attending import dense, tokens_read
from tests.tiny import films, streams
from tests.tiny import videos as tiny
from tests.tiny.classes import find
from xattn.models import family_of, family_of_pipeline
from xattn.models.family import Encoding
from xattn.results.trace import Trace

LAWN = "a red car on a green lawn"
BOAT = "the blue boat"
CELLS = 4 * 3
"""Cells of a frame: 64 x 48 pixels, latents of 8 x 6, patches of 2 x 2."""


@dataclass(frozen=True)
class Case:
    """A tiny pipeline of videos, and what is expected of it.

    Attributes:
        build: makes it.
        options: of its calls.
        frames: of its maps.
        cells: of a frame; 0 where layers have grids of their own.
        text: how many text positions there are.
        keys: the first of the text's keys.
        queries: the first of the video's queries.
        passes: denoiser calls in a step with guidance.
        doubled: whether guidance has the negative prompts in front of the batch.
        nth: which of a layer's attention calls reads the text.
        valid: how many text positions are left of the prompt's; None for all.
        guided: options that turn guidance on.
        unguided: options that turn it off, if it isn't a part of the pipeline.
        dropped: positions of the encoder's in front of the axis; None where the pipeline says.
        several: whether a prompt can have several videos.
        prompts: how many there can be.
        moved: whether the padding in front is cut off behind the encoder.
        rowed: whether frames are rows of the layers that read the text.
        index: where the axis' positions stand behind the video, if not one after the other.
    """

    build: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    frames: int = 3
    cells: int = CELLS
    text: int = 24
    keys: int = 0
    queries: int = 0
    passes: int = 1
    doubled: bool = False
    nth: int = 0
    valid: int | None = None
    guided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0})
    unguided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    dropped: int | None = 0
    several: bool = True
    prompts: int = 2
    moved: bool = False
    rowed: bool = False
    index: tuple[int, ...] = ()


T5 = {"max_sequence_length": 24}
WAN = diffusers.WanTransformer3DModel
PICTURE = Image.linear_gradient("L").resize((48, 64)).convert("RGB")
SANA = {**T5, "width": 32, "frames": 9, "num_frames": None}
SANA |= {"use_resolution_binning": False, "complex_human_instruction": None}
SMALL = {**T5, "height": 32, "width": 32}
TEMPLATE = {"template": "the old {} dog", "crop_start": 2}
STILL: dict[str, Any] = {"stg_scale": 0.0, "modality_scale": 1.0}
STILL |= {f"audio_{name}": value for name, value in STILL.items()}
OWN = {"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 2.0}
OWN |= {"spatio_temporal_guidance_blocks": [0]}
CASES = {
    "Wan": Case(tiny.wan, T5, passes=2),
    "Wan 2.2": Case(lambda: tiny.wan(two=True), T5, passes=2),
    "Wan, a frame given": Case(
        lambda: tiny.of_image("wan.pipeline_wan_i2v", "WanImageToVideoPipeline", WAN),
        {"image": PICTURE},
        text=512,
        passes=2,
        nth=1,
        several=False,
        prompts=1,
    ),
    "Wan 2.2, a frame given": Case(
        lambda: tiny.wan_of_frame(two=True),
        {**T5, "image": PICTURE},
        passes=2,
        several=False,
        prompts=1,
    ),
    "Wan 2.2 of 5B, a frame given": Case(  # each frame has a timestep of its own
        tiny.wan_of_frame,
        {**T5, "image": PICTURE},
        passes=2,
        several=False,
        prompts=1,
    ),
    "ChronoEdit": Case(
        lambda: tiny.of_image(
            "chronoedit.pipeline_chronoedit",
            "ChronoEditPipeline",
            diffusers.ChronoEditTransformer3DModel,
        ),
        {"image": PICTURE},
        frames=2,
        text=512,
        passes=2,
        nth=1,
        several=False,
        prompts=1,
    ),
    "Wan VACE": Case(
        lambda: tiny.wan(
            cls=tiny.unfixed("wan.pipeline_wan_vace", "WanVACEPipeline"),
            transformer=tiny.wan_model(
                diffusers.WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=2 * 4 + 64
            ),
        ),
        T5,
        passes=2,
        several=False,
        prompts=1,
    ),
    "SkyReels-V2": Case(
        lambda: tiny.wan(
            cls=tiny.unfixed("skyreels_v2.pipeline_skyreels_v2", "SkyReelsV2Pipeline"),
            transformer=tiny.wan_model(diffusers.SkyReelsV2Transformer3DModel),
        ),
        T5,
        passes=2,
    ),
    "AnyFlow": Case(films.anyflow, T5, doubled=True),
    "Allegro": Case(tiny.allegro, {**T5, "clean_caption": False}, doubled=True, several=False),
    "SANA-Video": Case(
        tiny.sana_video,
        SANA,
        cells=4 * 2,
        doubled=True,
    ),
    "SANA-Video, a frame given": Case(
        lambda: tiny.sana_video(cls=find("SanaImageToVideoPipeline")),
        {**SANA, "image": PICTURE},
        cells=4 * 2,
        doubled=True,
        several=False,
        prompts=1,
    ),
    "SANA-WM": Case(
        films.sana_wm,
        {
            **T5,
            "image": PICTURE,
            "chi_prompt": ["the old", "dog "],
            "action": "w-8",
            "intrinsics": [40.0, 40.0, 24.0, 32.0],
            "height": 16,
            "width": 12,
        },
        doubled=True,
        dropped=2,
        several=False,
        prompts=1,
    ),
    "Latte": Case(
        tiny.latte,
        {"num_frames": None, "video_length": 3, "output_type": "pt", "clean_caption": False},
        cells=16 * 12,
        text=8,  # the prompt's: padding is cut off
        doubled=True,
        several=False,
        prompts=1,
        rowed=True,
    ),
    "AnimateDiff": Case(
        tiny.animatediff,
        {"num_frames": 3},
        cells=0,
        text=77,
        doubled=True,
        several=False,
        rowed=True,
    ),
    "LTX-Video": Case(tiny.ltx, SMALL, cells=64, doubled=True),
    "LTX-Video, a frame given": Case(
        lambda: tiny.ltx(cls=diffusers.LTXImageToVideoPipeline),
        {**SMALL, "image": PICTURE},
        cells=64,
        doubled=True,
    ),
    "LTX-Video, a later frame given": Case(
        lambda: tiny.ltx(cls=diffusers.LTXConditionPipeline),
        {**SMALL, "image": PICTURE, "frame_index": 4, "strength": 0.8},
        cells=64,
        queries=64,  # the given frame's are in front
        doubled=True,
        several=False,
        prompts=1,
    ),
    "LTX-2": Case(
        films.ltx2,
        {**SMALL, **STILL},
        cells=64,
        doubled=True,
        passes=3,
        guided=OWN,
        moved=True,
    ),
    "LTX-2, a frame given": Case(
        lambda: films.ltx2(cls=find("LTX2ImageToVideoPipeline")),
        {**SMALL, **STILL, **films.first_frame(PICTURE)},
        cells=64,
        doubled=True,
        passes=3,
        guided=OWN,
        moved=True,
    ),
    "LTX-2, a later frame given": Case(
        lambda: films.ltx2(cls=find("LTX2ConditionPipeline")),
        {**SMALL, **STILL, **films.later_frame(PICTURE)},
        cells=64,
        doubled=True,
        passes=3,
        guided=OWN,
        moved=True,
    ),
    "LTX-2 without registers": Case(
        lambda: films.ltx2(registers=None),
        {**SMALL, **STILL},
        cells=64,
        doubled=True,
        guided={"guidance_scale": 3.0, "audio_guidance_scale": 3.0},
    ),
    "Cosmos 1": Case(
        films.cosmos,
        T5,
        passes=2,
        guided={"guidance_scale": 3.0, "negative_prompt": "a dog"},
    ),
    "Cosmos 2.5": Case(
        films.cosmos25,
        {"max_sequence_length": 96},
        text=96,
        passes=2,
        guided={"guidance_scale": 3.0, "negative_prompt": "a dog"},
    ),
    "Cosmos 3": Case(films.cosmos3, text=140, passes=2, nth=1, several=False, prompts=1),
    "Cosmos 3, an image": Case(
        films.cosmos3,
        {"num_frames": 1, "use_system_prompt": False},
        frames=1,
        text=50,
        passes=2,
        nth=1,
        several=False,
        prompts=1,
    ),
    "Cosmos 3, a frame given, and sound": Case(
        films.cosmos3,
        {"image": PICTURE, "enable_sound": True, "add_duration_template": False},
        text=105,
        passes=2,
        nth=1,
        several=False,
        prompts=1,
    ),
    "CogVideoX": Case(tiny.cogvideox, T5, queries=24, doubled=True, several=False),
    "CogVideoX, a frame given": Case(
        lambda: tiny.cogvideox(cls=diffusers.CogVideoXImageToVideoPipeline, channels=8),
        {**T5, "image": PICTURE},
        queries=24,
        doubled=True,
        several=False,
        prompts=1,
    ),
    "CogVideoX 1.5": Case(
        lambda: tiny.cogvideox(later=True), T5, frames=2, queries=24, doubled=True, several=False
    ),
    "ConsisID": Case(
        films.consisid,
        {**T5, "image": PICTURE, **films.face()},
        queries=24,
        doubled=True,
        several=False,
        prompts=1,
    ),
    "HunyuanVideo": Case(
        tiny.hunyuan_video,
        {**T5, "prompt_template": TEMPLATE},
        keys=3 * CELLS,
        passes=2,
        guided={"true_cfg_scale": 2.0, "negative_prompt": "a dog"},
        dropped=2,
    ),
    "HunyuanVideo, a frame given": Case(
        tiny.hunyuan_video_of_image,
        {**T5, "prompt_template": tiny.SEEN, "image": PICTURE},
        text=2 + 24 - 4,  # every other position of the picture, and the template's end cut off
        keys=3 * CELLS,
        passes=2,
        guided={"true_cfg_scale": 2.0, "negative_prompt": "a dog"},
        dropped=5 + 3 - 2,  # as the text encoder reads them, behind four positions for one mark
        several=False,
        prompts=1,
    ),
    # 18 valid positions, 4 of a picture and 16 of glyphs that there aren't, then padding
    "HunyuanVideo 1.5": Case(
        films.hunyuan_video15,
        keys=3 * CELLS,
        passes=2,
        guided={"negative_prompt": "a dog"},
        unguided={},
        dropped=12,
        several=False,
        index=(*range(18), *range(18 + 20, 24 + 20)),
    ),
    "HunyuanVideo 1.5, a frame given": Case(
        films.hunyuan_video15_of_image,
        {"image": PICTURE, "height": None, "width": None},
        keys=3 * CELLS,
        passes=2,
        guided={"negative_prompt": "a dog"},
        unguided={},
        dropped=12,
        several=False,
        prompts=1,
        index=(*range(4, 22), *range(22 + 16, 28 + 16)),
    ),
    "EasyAnimate": Case(
        films.easy_animate,
        text=256,
        queries=256,
        doubled=True,
        guided={"guidance_scale": 3.0, "negative_prompt": "a dog"},
        several=False,
    ),
    "Kandinsky 5": Case(
        lambda: streams.kandinsky5(cls=diffusers.Kandinsky5T2VPipeline, vae=tiny.hunyuan_vae()),
        text=14,
        passes=2,
        dropped=None,  # its system message differs between versions of diffusers
        several=False,
    ),
    "Kandinsky 5, a frame given": Case(
        lambda: streams.kandinsky5(cls=diffusers.Kandinsky5I2VPipeline, vae=tiny.hunyuan_vae()),
        {"image": PICTURE, "num_frames": 21},  # fewer leave nothing that it normalises by
        frames=6,
        text=14,
        passes=2,
        dropped=None,
        several=False,
        prompts=1,
    ),
    "Motif-Video": Case(
        films.motif_video,
        T5,
        keys=3 * CELLS,
        passes=2,
        guided={"negative_prompt": "a dog"},
        unguided={},
    ),
    "Kandinsky 6": Case(
        films.kandinsky6,
        {"max_sequence_length": 330},
        text=330,  # most of them the system message's
        passes=2,
        dropped=129,
    ),
    "Kandinsky 6, a picture given": Case(
        lambda: films.kandinsky6(pictured=True),
        {"max_sequence_length": 330, "image": PICTURE},
        text=330,
        passes=2,
        dropped=129,
        several=False,
        prompts=1,
    ),
    "Mochi": Case(tiny.mochi, {**T5, "num_frames": 13}, keys=3 * CELLS, doubled=True, valid=8),
}
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi's own
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def pipe(name: str) -> Any:
        if name not in made:
            made[name] = CASES[name].build()
        return made[name]

    return pipe


def draw(pipe: Any, case: Case, prompt: Any = LAWN, **options: Any) -> Any:
    given: dict[str, Any] = {"height": 64, "width": 48, "num_frames": 9}
    given |= {"num_inference_steps": 2, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    given |= case.options | options
    if "pyramid_num_inference_steps_list" in given:
        given["num_inference_steps"] = None
    for name in (
        "num_inference_steps",
        "num_frames",
        "height",
        "width",
    ):  # which a pipeline calls otherwise, or not at all
        if given[name] is None:
            del given[name]
    drawn = pipe(prompt=prompt, generator=generator, **given)
    return drawn.video if hasattr(drawn, "video") else drawn.frames


def recorded(pipe: Any, case: Case, *args: Any, **options: Any) -> tuple[Trace, Any]:
    record = options.pop("record", {})
    with xattn.record(pipe, **record) as trace:
        video = draw(pipe, case, *args, **options)
    return trace, video


def denoisers(pipe: Any) -> tuple[Any, ...]:
    return family_of_pipeline(pipe).denoisers(pipe)


def processors(pipe: Any) -> list[Any]:
    models = denoisers(pipe)
    return [m.processor for one in models for m in one.modules() if hasattr(m, "processor")]


def truth_of(pipe: Any, case: Case, *args: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Draw, and return each layer's probabilities, (calls, rows, heads, queries, keys)."""
    found: dict[str, list[Any]] = {}
    models = denoisers(pipe)
    names = {x.name for x in family_of(models[0]).layers(models[0]) if x.reads_text}
    with dense(models[0], names) as first, dense(models[-1], names) as second:
        video = draw(pipe, case, *args, **options)
    for name in names:
        calls = first.get(name, [])
        if len(models) > 1:  # they take turns
            calls = calls + second[name]
        found[name] = calls
    return video, found


@every
def test_maps_are_the_dense_softmaxs_and_the_video_is_unchanged(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    images = 2 if case.several else 1
    options = {**case.guided, **({"num_videos_per_prompt": images} if case.several else {})}
    before = processors(pipe)
    plain, truth = truth_of(pipe, case, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(case.text)}
    trace, video = recorded(pipe, case, record=how, **options)
    run = trace.run
    assert torch.equal(video, plain)
    assert all(one is two for one, two in zip(processors(pipe), before, strict=True))
    assert {layer.name for layer in run.layers} == set(truth)
    assert (run.frames, len(run.prompt_of)) == (case.frames, images * case.frames)
    first, sharpest = case.queries, 0.0
    for n, layer in enumerate(run.layers):
        area = case.frames * (case.cells or math.prod(layer.grid))
        calls = rows_of(truth[layer.name], case, images)
        valid = case.valid or case.text
        keys = torch.tensor(case.index or range(valid))
        if calls.shape[-1] != case.text:  # the video's are among them
            keys = keys + case.keys
        right = calls[..., first : first + area, :].index_select(-1, keys)
        kept = run.maps(n).double()  # (steps, images x frames, heads, tokens, height, width)
        kept = kept.flatten(-2).unflatten(1, (images, case.frames))  # (s, i, f, h, t, cells)
        kept = kept.permute(0, 1, 3, 2, 5, 4).flatten(3, 4)  # (s, i, h, f x cells, tokens)
        torch.testing.assert_close(kept[..., :valid], right, atol=1e-5, rtol=0)
        assert not kept[..., valid:].any()
        sharpest = max(sharpest, float((right.amax(-2) - right.amin(-2)).max()))
    assert sharpest > 0.02  # flat attention would prove little


def rows_of(calls: list[Any], case: Case, images: int) -> Any:
    """Return the prompts' rows of each step, (steps, images, heads, queries, keys)."""
    if case.valid is not None:  # a call for each row, of a length of its own
        rows = 2 * images if case.doubled else images
        steps = [calls[n : n + rows][-images:] for n in range(0, len(calls), rows)]
        return torch.stack([torch.cat(step) for step in steps])
    texts = calls[case.nth :: case.nth + 1]  # a given frame comes first
    if case.rowed:
        last = [call[-images * case.frames :] for call in texts[:: case.passes]]
        parts = [call.unflatten(0, (images, -1)).movedim(1, 2).flatten(2, 3) for call in last]
        return torch.stack(parts)
    return torch.stack([call[-images:] for call in texts[:: case.passes]])


@every
def test_words_are_those_that_the_text_encoder_read(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    encoder = getattr(pipe, "text_encoder", None) or pipe.transformer.embed_tokens
    with tokens_read(encoder) as given:
        prompts: Any = LAWN if case.prompts == 1 else [LAWN, BOAT]
        trace, _ = recorded(pipe, case, prompts, **case.unguided)
    read = [row for ids in given for row in torch.atleast_2d(ids)]
    count = len(trace.prompts)
    assert trace.prompts == (LAWN, BOAT)[:count]
    assert trace.run.prompt_of == tuple(n for n in range(count) for _ in range(case.frames))
    for prompt, ids in zip(trace.run.prompts, read[:count], strict=True):
        assert [word.text for word in prompt.words] == prompt.text.split()
        ids = ids[ids != 0] if case.moved else ids
        dropped = case.dropped
        if dropped is None:
            dropped = pipe.prompt_template_encode_start_idx
        for token in prompt.tokens:
            assert int(ids[token.position + dropped]) == token.id
    steps = torch.tensor(trace.timesteps)
    torch.testing.assert_close(steps, pipe.scheduler.timesteps[:2].float())


def test_two_denoisers_take_turns_and_fill_the_maps_of_one_run(pipes: Any) -> None:
    case, pipe = CASES["Wan 2.2"], pipes("Wan 2.2")
    called: list[int] = []
    hooks = [
        model.register_forward_hook(lambda *_, n=n: called.append(n))
        for n, model in enumerate(denoisers(pipe))
    ]
    trace, _ = recorded(pipe, case, guidance_scale=1.0, num_inference_steps=4)
    for hook in hooks:
        hook.remove()
    assert called == [0, 0, 1, 1]
    assert [layer.name for layer in trace.run.layers] == ["blocks.0.attn2", "blocks.1.attn2"]
    assert all(run.maps(n).flatten(1).any(1).all() for run in trace.runs for n in (0, 1))


def test_a_given_frame_is_read_before_the_text() -> None:
    """The layer's second call is recorded, whose keys are the text's."""
    model = tiny.wan_model(image_dim=8, added_kv_proj_dim=24)
    layers = [x for x in family_of(model).layers(model) if x.reads_text]
    assert [x.nth for x in layers] == [1, 1]
    call = {
        "hidden_states": torch.randn(1, 4, 3, 8, 6),
        "timestep": torch.tensor([[0.0, 500.0, 500.0]]),
        "encoder_hidden_states": torch.randn(1, 512, 32),
    }
    read = family_of(model).read({"self": model, **call})
    assert (read.frames, read.latent, read.timestep.tolist()) == (3, (8, 6), [500.0])
    with dense(model, {layers[0].name}) as truth:
        model(
            **{**call, "timestep": torch.tensor([500.0])},
            encoder_hidden_states_image=torch.randn(1, 5, 8),
        )
    assert [probs.shape[-1] for probs in truth[layers[0].name]] == [5, 512]


def test_connectors_are_watched_inside_the_block_alone(pipes: Any) -> None:
    pipe = pipes("LTX-2")
    with xattn.record(pipe):
        assert len(pipe.connectors._forward_hooks) == 1
    assert not pipe.connectors._forward_hooks


# -- asking of a video's trace


@pytest.fixture(scope="module")
def film(pipes: Any) -> tuple[Trace, Any]:
    return recorded(pipes("Wan"), CASES["Wan"], guidance_scale=1.0, output_type="np")


def test_each_frame_is_an_image_with_its_own_picture(film: Any) -> None:
    trace, video = film
    assert video.shape == (1, 9, 64, 48, 3)
    heats = trace.frames("car")
    assert np.stack(heats).shape == (3, 8, 6)
    for frame, (heat, n) in enumerate(zip(heats, (0, 4, 8), strict=True)):
        assert np.array_equal(heat.array, trace.heatmap("car", frame).array)
        assert np.array_equal(np.asarray(heat.picture), (video[0, n] * 255).round().astype("uint8"))
        assert heat.overlay().size == (48, 64)
    assert not np.array_equal(heats[0].array, heats[2].array)
    assert "3 frames" in repr(trace)


def test_frames_of_an_image_or_of_a_video_that_isnt_there_are_refused(film: Any) -> None:
    trace, _ = film
    with pytest.raises(ValueError, match="video: 1 is out of range, there are 1"):
        trace.frames("car", 1)


def test_an_animation_shows_the_frames(film: Any, tmp_path: Path) -> None:
    trace, _ = film
    trace.animate("car", tmp_path / "car.gif")
    with Image.open(tmp_path / "car.gif") as shown:
        assert getattr(shown, "n_frames", 0) == 3


def test_a_grid_and_a_report_spread_over_the_frames(film: Any, tmp_path: Path) -> None:
    trace, _ = film
    sheet = trace.grid(["car", "lawn"])
    steps = trace.grid(["car", "lawn"], 1, [0])
    assert sheet.width > steps.width  # the sum over steps of each frame; a frame, and its step
    trace.report(tmp_path / "film.html")
    text = (tmp_path / "film.html").read_text(encoding="utf-8")
    assert all(f"frame {n}" in text for n in range(3))


@pytest.mark.parametrize("folder", [True, False])
def test_a_videos_axes_are_on_disk(pipes: Any, tmp_path: Path, folder: bool) -> None:
    to = {"to": tmp_path / "runs"} if folder else {}
    trace, _ = recorded(pipes("Wan"), CASES["Wan"], record=to, guidance_scale=1.0, output_type="np")
    path = tmp_path / "runs"
    if not folder:
        path = tmp_path / "film.safetensors"
        trace.save(path)
    back = xattn.load(path)
    assert back.run.frames == 3
    assert len(back.run.images) == 3
    for one, two in zip(back.frames("car"), trace.frames("car"), strict=True):
        assert np.array_equal(one.array, two.array)


@pytest.mark.parametrize("what", [{"affinity": True}, {"previews": True}, {"also": "boat"}])
def test_what_knows_images_alone_is_refused_before_a_video_is_drawn(pipes: Any, what: Any) -> None:
    with pytest.raises(ValueError, match="can't be had with"):
        recorded(pipes("Wan"), CASES["Wan"], record=what, guidance_scale=1.0)


def test_a_caption_of_actions_is_refused_before_anything_is_drawn() -> None:
    family = family_of(films.cosmos3().transformer)
    assert isinstance(family, Encoding)
    with pytest.raises(ValueError, match="record Cosmos 3 without it"):
        family.as_encoded({"prompt": LAWN, "action_mode": "policy"}, ([1], [2]))


def test_dots_that_a_pipeline_leaves_out_are_of_no_word(pipes: Any) -> None:
    trace, _ = recorded(pipes("Cosmos 3"), CASES["Cosmos 3, an image"], "a red car...")
    assert trace.words == ("a", "red", "car")
    assert trace.prompts == ("a red car...",)


def test_kandinskys_videos_have_frames_too() -> None:
    pipe = streams.kandinsky5()
    model = pipe.transformer
    sample = torch.randn(1, 3, 4, 6, 4)
    read = family_of(model).read(
        {"self": model, "hidden_states": sample, "timestep": 1.0, "encoder_hidden_states": None}
    )
    assert (read.frames, read.latent) == (3, (4, 6))


def test_each_segment_of_a_video_is_a_run_even_guided_by_the_same_prompt() -> None:
    pipe, shown = tiny.animate(), [PICTURE.resize((48, 64))]
    options: dict[str, Any] = {"image": PICTURE, "segment_frame_length": 9, "num_frames": None}
    options |= {"pose_video": shown * 17, "face_video": [PICTURE.resize((16, 16))] * 17}
    options |= {"negative_prompt": LAWN, "guidance_scale": 2.0, "output_type": "np"}
    case = Case(tiny.animate, nth=1, passes=2)
    plain, truth = truth_of(pipe, case, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(512)}
    trace, video = recorded(pipe, case, record=how, **options)
    assert np.array_equal(video, plain)
    assert len(trace.runs) == 2  # of 9 frames each, the last of the one the first of the other
    for number, run in enumerate(trace.runs):
        assert (run.frames, run.done, run.images) == (4, 2, [])  # the first is the reference's
        for n, layer in enumerate(run.layers):
            steps = rows_of(truth[layer.name], case, 1)[2 * number : 2 * number + 2]
            kept = run.maps(n).double().flatten(-2)  # (steps, frames, heads, tokens, cells)
            right = steps[:, 0].unflatten(2, (4, CELLS)).permute(0, 2, 1, 4, 3)
            torch.testing.assert_close(kept, right, atol=1e-5, rtol=0)
    assert trace[1].heatmap("car", 3).array.shape == (8, 6)
    assert trace.words == ("a", "red", "car", "on", "green", "lawn")


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile:UserWarning")
def test_each_chunk_of_a_video_is_a_run() -> None:
    pipe = films.anyflow(chunks=(1, 2))
    case = Case(films.anyflow, T5, doubled=True)
    options = {"guidance_scale": 3.0, "negative_prompt": LAWN}
    plain, truth = truth_of(pipe, case, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(24)}
    trace, video = recorded(pipe, case, record=how, **options)
    assert torch.equal(video, plain)
    assert [run.frames for run in trace.runs] == [1, 2]
    for number, run in enumerate(trace.runs):
        assert run.timesteps == tuple(pipe.scheduler.timesteps.tolist())
        for n, layer in enumerate(run.layers):
            # two steps of a chunk, then a call that keeps its keys
            calls = torch.stack(truth[layer.name][3 * number : 3 * number + 2])[:, -1]
            right = calls.unflatten(2, (run.frames, CELLS)).permute(0, 2, 1, 4, 3)
            kept = run.maps(n).double().flatten(-2)  # (steps, frames, heads, tokens, cells)
            torch.testing.assert_close(kept, right, atol=1e-5, rtol=0)
    assert trace.words == ("a", "red", "car", "on", "green", "lawn")


@pytest.mark.parametrize("pyramid", [False, True], ids=["windows", "and their stages"])
def test_each_window_of_helios_and_each_of_its_stages_is_a_run(pyramid: bool) -> None:
    pipe = films.helios(pyramid=pyramid)
    case = Case(films.helios, {**T5, "num_latent_frames_per_chunk": 2}, passes=2)
    options: dict[str, Any] = {"guidance_scale": 3.0, "negative_prompt": LAWN, "width": 64}
    options["output_type"] = "np"
    if pyramid:
        options["pyramid_num_inference_steps_list"] = [2, 2]
    plain, truth = truth_of(pipe, case, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(24)}
    trace, video = recorded(pipe, case, record=how, **options)
    assert np.array_equal(video, plain)
    grids = [(2, 2), (4, 4)] * 2 if pyramid else [(4, 4)] * 2
    assert [run.layers[0].grid for run in trace.runs] == grids
    for number, run in enumerate(trace.runs):
        for n, layer in enumerate(run.layers):
            calls = truth[layer.name][4 * number : 4 * number + 4]
            right = rows_of(calls, case, 1)[:, 0].unflatten(2, (2, -1)).permute(0, 2, 1, 4, 3)
            kept = run.maps(n).double().flatten(-2)  # (steps, frames, heads, tokens, cells)
            torch.testing.assert_close(kept, right, atol=1e-5, rtol=0)
    assert trace.words == ("a", "red", "car", "on", "green", "lawn")


def test_helios_whose_frames_before_a_window_read_the_text_is_refused() -> None:
    pipe = films.helios(guidance_cross_attn=False)
    with pytest.raises(RuntimeError, match="lets the frames before a window read the text"):
        recorded(pipe, Case(films.helios, {**T5, "width": 64}))


def test_negative_prompts_with_a_pass_of_their_own_are_refused() -> None:
    pipe, case = tiny.wan(), CASES["Wan"]
    recording = xattn.record(pipe, negative=True)
    with pytest.raises(RuntimeError, match="WanPipeline, whose guidance runs in two"), recording:
        draw(pipe, case, negative_prompt="two cats", guidance_scale=3.0)
