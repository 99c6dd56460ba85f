"""Offload, slicing, compilation, casting, threads: the image stays the machine's own, or a refusal.

``docs/compatibility.md`` says of each row of ``MACHINES`` what is found here; a test compares them.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import nn

import xattn
from tests import tiny
from tests.tiny.classes import skip_before

PROMPT = "a red car on a green lawn"
EXACT = "exact"
OLD_TORCH = Version(torch.__version__) < Version("2.7")
"""Whether a graph goes with the processor that it was compiled for, seen with torch 2.6.0."""


def small() -> Any:
    """Return a pipeline of one down block, middle and one up block: quick to run."""
    blocks: dict[str, Any] = {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    return tiny.sd1(unet=tiny.unet(**blocks))


def smallest() -> Any:
    """Return a pipeline of one layer of text and few others: quick to compile."""
    blocks: dict[str, Any] = {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("UpBlock2D",),
    }
    return tiny.sd1(unet=tiny.unet(**blocks))


def draw(pipe: Any, copies: int = 1, size: int = 16, steps: int = 2) -> Any:
    """Draws one prompt, or copies of it from the same noise."""
    return pipe(
        [PROMPT] * copies, num_inference_steps=steps, height=size, width=size, output_type="np",
        generator=[torch.Generator().manual_seed(0) for _ in range(copies)],
    ).images  # fmt: skip


def edit(pipe: Any, *edits: Any, size: int = 16) -> Any:
    return xattn.edit(
        pipe, PROMPT, *edits, num_inference_steps=2, height=size, width=size, output_type="np",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def parts(pipe: Any) -> dict[str, Any]:
    """What must be found again after a block."""
    unet = getattr(pipe.unet, "_orig_mod", pipe.unet)
    hooks = {name: list(m._forward_pre_hooks) for name, m in unet.named_modules()}
    return {**unet.attn_processors, "hooks": hooks, "call": pipe.unet.__dict__.get("forward")}


def assert_same_parts(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, part in before.items():
        assert part is after[name] or (name == "hooks" and part == after[name]), name


# -- the machines --------------------------------------------------------------------------------


class XFormersAttnProcessor:
    """Stands for diffusers' class of this name: no attention call of torch's is made."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None) -> Any:
        raise AssertionError("it must not come to sampling")


class OtherBackend(XFormersAttnProcessor):
    _attention_backend = "flash"


class Quantized(nn.Module):
    """A linear layer whose weight is eight bits and a scale, as quantisation libraries make it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        packed: Any = self.packed
        scale: Any = self.scale
        return nn.functional.linear(x, packed.to(x.dtype) * scale.to(x.dtype), self.bias)


def quantize(pipe: Any) -> None:
    for module in list(pipe.unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Quantized(child))


def offload_groups(pipe: Any) -> None:
    if not torch.accelerator.is_available():
        skip_before("0.41", "group offload without an accelerator")
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(cpu, cpu, offload_type="leaf_level")


def offload_model(pipe: Any) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(pipe.unet, execution_device="cpu")


def offload_layers(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, execution_device=torch.device("cpu"), offload_buffers=True)


def cast_layers(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def use(processor: Any) -> Callable[[Any], None]:
    return lambda pipe: pipe.unet.set_attn_processor(processor())


def tile(pipe: Any) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 8, 4


def half(pipe: Any) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@dataclass(frozen=True)
class Machine:
    """A way to run a pipeline, and what comes of recording and of editing it.

    Attributes:
        setup: makes a pipeline run that way.
        record: EXACT, or what the refusal says.
        edit: EXACT, or what the refusal says.
        around: a context to draw in.
        like_plain: whether maps are those of the plain pipeline to the last bit.
    """

    setup: Callable[[Any], Any]
    record: str = EXACT
    edit: str = EXACT
    around: Callable[[Any], AbstractContextManager[Any]] = lambda pipe: nullcontext()
    like_plain: bool = True


MACHINES = {
    "model offload": Machine(offload_model),
    "sequential offload": Machine(offload_layers),
    "group offload": Machine(offload_groups),
    "attention slicing": Machine(
        lambda pipe: pipe.enable_attention_slicing(1),
        edit=r"call pipe\.disable_attention_slicing\(\) first",
        like_plain=False,
    ),
    "VAE slicing": Machine(lambda pipe: pipe.vae.enable_slicing()),
    "VAE tiling": Machine(tile),
    "native attention backend": Machine(lambda pipe: pipe.unet.set_attention_backend("native")),
    "other attention backends": Machine(
        use(OtherBackend),
        record=r'call set_attention_backend\("native"\) of the pipeline.s unet',
        edit=r'call set_attention_backend\("native"\) of the pipeline.s unet',
    ),
    "xformers": Machine(
        use(XFormersAttnProcessor),
        record=r"call pipe\.disable_xformers_memory_efficient_attention\(\) first",
        edit=r"call pipe\.disable_xformers_memory_efficient_attention\(\) first",
    ),
    "layerwise casting": Machine(cast_layers, like_plain=False),
    "fused projections": Machine(lambda pipe: pipe.unet.fuse_qkv_projections(), like_plain=False),
    "quantised layers": Machine(quantize, like_plain=False),
    "autocast": Machine(lambda pipe: None, around=half, like_plain=False),
    "bfloat16": Machine(lambda pipe: pipe.to(torch.bfloat16), like_plain=False),
    "channels last": Machine(
        lambda pipe: pipe.unet.to(memory_format=torch.channels_last), like_plain=False
    ),
}


@pytest.fixture(scope="module")
def plain_trace() -> xattn.Trace:
    pipe = small()
    with xattn.record(pipe, dtype=torch.float32) as trace:
        draw(pipe)
    return trace


def assert_refused(pipe: Any, message: str, work: Callable[[], Any]) -> None:
    """Checks that work is refused, in one sentence, before the denoiser is called."""
    before, calls = parts(pipe), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = pipe.unet.conv_in.register_forward_hook(count)
    with pytest.raises(TypeError, match=message) as caught:
        work()
    handle.remove()
    assert calls == 0
    assert "\n" not in str(caught.value)
    assert_same_parts(before, parts(pipe))


def recorded(pipe: Any) -> xattn.Trace:
    with xattn.record(pipe, dtype=torch.float32) as trace:
        draw(pipe)
    return trace


@pytest.mark.parametrize("name", MACHINES)
def test_recording_leaves_every_machines_image_unchanged(
    name: str, plain_trace: xattn.Trace
) -> None:
    machine, pipe = MACHINES[name], small()
    machine.setup(pipe)
    if machine.record != EXACT:
        assert_refused(pipe, machine.record, lambda: recorded(pipe))
        return
    before = parts(pipe)
    with machine.around(pipe):
        plain = draw(pipe)
        with xattn.record(pipe, dtype=torch.float32) as trace:
            np.testing.assert_array_equal(plain, draw(pipe))
        assert_same_parts(before, parts(pipe))
        np.testing.assert_array_equal(plain, draw(pipe))
    for n in range(len(trace.run.layers)):
        expected, found = plain_trace.run.maps(n), trace.run.maps(n)
        if machine.like_plain:
            assert torch.equal(expected, found)
        else:
            torch.testing.assert_close(expected, found, atol=0.08, rtol=0)


@pytest.mark.parametrize("name", MACHINES)
def test_editing_changes_nothing_but_what_was_asked(name: str) -> None:
    machine, pipe = MACHINES[name], small()
    machine.setup(pipe)
    replace = xattn.Replace("red", "blue")
    if machine.edit != EXACT:
        assert_refused(pipe, machine.edit, lambda: edit(pipe, replace))
        return
    before = parts(pipe)
    with machine.around(pipe):
        plain = draw(pipe, copies=2)
        neutral = edit(pipe, [])
        np.testing.assert_array_equal(plain, np.stack([neutral.source, neutral.images[0]]))
        real = edit(pipe, replace)
        np.testing.assert_array_equal(plain[0], real.source)
        assert not np.array_equal(real.source, real.images[0])
    assert_same_parts(before, parts(pipe))


def test_the_table_in_the_docs_says_what_the_tests_find() -> None:
    text = (Path(__file__).parents[2] / "docs/compatibility.md").read_text(encoding="utf-8")
    cells = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if "|" in line]
    table = {row[0]: row[1:3] for row in cells}
    for name, machine in MACHINES.items():
        said = ["exact" if each == EXACT else "refused" for each in (machine.record, machine.edit)]
        assert table.get(name) == said, f"docs/compatibility.md on {name!r}: {table.get(name)}"


# -- while the block runs ------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["fuse", "slice", "default", "backend"])
def test_processors_that_are_exchanged_inside_the_block_are_recorded_too(change: str) -> None:
    changes: dict[str, Callable[[Any], Any]] = {
        "fuse": lambda pipe: pipe.unet.fuse_qkv_projections(),
        "slice": lambda pipe: pipe.enable_attention_slicing(1),
        "default": lambda pipe: pipe.unet.set_default_attn_processor(),
        "backend": lambda pipe: pipe.unet.set_attention_backend("native"),
    }
    other, pipe = small(), small()
    draw(other)
    changes[change](other)
    plain = draw(other)
    with xattn.record(pipe) as trace:
        draw(pipe)
        changes[change](pipe)
        np.testing.assert_array_equal(plain, draw(pipe))
    assert [run.done for run in trace.runs] == [2, 2]
    kinds = {name: type(p) for name, p in other.unet.attn_processors.items()}
    assert kinds == {name: type(p) for name, p in pipe.unet.attn_processors.items()}
    np.testing.assert_array_equal(plain, draw(pipe))
    for a, b in zip(*(recorded_maps(run) for run in trace.runs), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def recorded_maps(run: Any) -> Iterator[torch.Tensor]:
    return (run.maps(n) for n in range(len(run.layers)))


# -- torch.compile -------------------------------------------------------------------------------


@contextmanager
def graphs() -> Iterator[Callable[[], int]]:
    """Return a function that counts the graphs compiled so far, from a clean start."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    try:
        yield lambda: counters["stats"]["unique_graphs"]
        assert not counters["graph_break"]
    finally:
        torch._dynamo.reset()


def compiled(pipe: Any, backend: str, in_place: bool) -> Any:
    if in_place:
        pipe.unet.compile(fullgraph=True, backend=backend)
    else:
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=backend)
    return pipe


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in-place"])
def test_a_compiled_unet_is_recorded_in_one_more_graph(in_place: bool) -> None:
    pipe = compiled(smallest(), "aot_eager", in_place)
    before = parts(pipe)
    with graphs() as count:
        plain = draw(pipe, steps=3)
        assert count() == 1
        with xattn.record(pipe) as trace:
            np.testing.assert_array_equal(plain, draw(pipe, steps=3))
            assert count() == 2
            np.testing.assert_array_equal(plain, draw(pipe, steps=3))
        with xattn.record(pipe):  # another recording, the same graph
            draw(pipe)
        again = 3 if OLD_TORCH else 2
        assert count() == again
        assert_same_parts(before, parts(pipe))
        np.testing.assert_array_equal(plain, draw(pipe, steps=3))
        assert count() == again
    reference = smallest()
    with xattn.record(reference) as expected:
        draw(reference, steps=3)
    for a, b in zip(recorded_maps(trace.run), recorded_maps(expected.run), strict=True):
        # softmax here, its sums from the fused attention there: float16's last digit may differ
        torch.testing.assert_close(a, b, atol=2**-11, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_prompts_of_many_lengths_share_a_few_graphs() -> None:
    pipe = compiled(smallest(), "aot_eager", in_place=False)
    words = [*PROMPT.split(), "with", "two", "cats", "and", "a", "dog"]
    with graphs() as count:
        draw(pipe)
        for length in range(2, 13, 2):
            with xattn.record(pipe, words=list(range(1, length + 1))), torch.no_grad():
                pipe(" ".join(words), num_inference_steps=1, height=16, width=16)
        assert count() <= (7 if OLD_TORCH else 4)


@pytest.mark.filterwarnings("ignore")
def test_inductors_image_is_its_own_while_it_is_recorded() -> None:
    pipe = compiled(smallest(), "inductor", in_place=False)
    with graphs() as count:
        plain = draw(pipe)
        with xattn.record(pipe, dtype=torch.float32) as trace:
            image = draw(pipe)
        assert count() == 2
    # inductor fuses around the maps: the last bits may differ
    np.testing.assert_allclose(plain, image, atol=2e-5)
    expected = recorded(smallest())
    for a, b in zip(recorded_maps(trace.run), recorded_maps(expected.run), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "edits",
    [
        [xattn.Replace("red", "blue", cross_steps=0.8, self_steps=0.4)],
        [
            xattn.Refine("a red car on a green lawn at night"),
            [xattn.Replace("red", "blue"), xattn.LocalBlend("car", threshold=0.8)],
        ],
    ],
    ids=["replace", "refine and local blend"],
)
def test_a_compiled_unet_is_edited_without_a_graph_for_each_step(edits: list[Any]) -> None:
    pipe = compiled(smallest(), "aot_eager", in_place=False)

    def edited(one: Any) -> Any:
        return xattn.edit(
            one, PROMPT, *edits,
            num_inference_steps=5, height=16, width=16, output_type="np",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    with graphs() as count:
        result = edited(pipe)
        # one for each phase: cross and self, cross alone, neither
        assert count() <= 4
    expected = edited(smallest())
    # a graph may round sums otherwise: to 2e-5 of an image, and a mask's cells on the threshold
    np.testing.assert_allclose(result.source, expected.source, atol=2e-5)
    found = zip(result.images, expected.images, result.masks, expected.masks, strict=True)
    for one, two, mask, other in found:
        assert (mask is None) == (other is None)
        flipped = 0.0 if mask is None else float((mask != other).float().mean())
        assert flipped <= 0.01
        if not flipped:
            np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in-place"])
def test_a_compiled_unet_can_not_keep_its_source(in_place: bool) -> None:
    pipe = smallest()
    kept = xattn.edit(
        pipe, PROMPT, keep_source=True, num_inference_steps=1, height=16, width=16
    )  # fmt: skip
    compiled(pipe, "aot_eager", in_place)
    for options in ({"keep_source": True}, {"source": kept}):
        with pytest.raises(ValueError, match=r"compiled denoiser.* without torch\.compile"):
            xattn.edit(pipe, PROMPT, xattn.Replace("red", "blue"), **options)


# -- threads -------------------------------------------------------------------------------------


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Runs each in a thread of its own, at once; gives what they return, or raise."""
    found: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(n: int) -> None:
        start.wait()
        try:
            found[n] = works[n]()
        except Exception as error:
            found[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_threads_with_two_pipelines_record_right() -> None:
    pipes = [small(), small()]
    before = [parts(pipe) for pipe in pipes]
    expected = recorded(small())

    def work(pipe: Any) -> list[xattn.Trace]:
        return [recorded(pipe) for _ in range(4)]

    for traces in in_threads(*(lambda p=p: work(p) for p in pipes)):
        for trace in traces:
            for a, b in zip(recorded_maps(trace.run), recorded_maps(expected.run), strict=True):
                assert torch.equal(a, b)
    for pipe, found in zip(pipes, before, strict=True):
        assert_same_parts(found, parts(pipe))
        assert all(
            type(p).__name__ == "AttnProcessor2_0" for p in pipe.unet.attn_processors.values()
        )


def test_two_threads_sharing_one_unet_are_right_or_refused_never_mixed() -> None:
    pipe = small()
    # a tokenizer keeps its padding between calls: shared, it would give threads each other's
    twin = type(pipe).from_pipe(pipe, tokenizer=copy.deepcopy(pipe.tokenizer))
    twin.set_progress_bar_config(disable=True)
    expected = recorded(small())
    for found in in_threads(lambda: recorded(pipe), lambda: recorded(twin)):
        if isinstance(found, Exception):
            assert "another thread" in str(found)
            continue
        for a, b in zip(recorded_maps(found.run), recorded_maps(expected.run), strict=True):
            # within the other's wrapper the softmax takes another form, equal to float32's rounding
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert all(type(p).__name__ == "AttnProcessor2_0" for p in pipe.unet.attn_processors.values())
