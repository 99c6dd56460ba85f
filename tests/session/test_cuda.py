"""What only a CUDA device can show: ``pytest -m cuda`` runs all of it.

Half precision, offload to and from the device, no synchronisation inside a step, CUDA graphs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from tests.session.test_machines import PROMPT, assert_same_parts, parts
from xattn import batch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = [torch.float16, torch.bfloat16]


def on_cuda(family: Callable[..., Any] = tiny.sd1, dtype: Any = torch.float32) -> Any:
    return family().to("cuda", dtype)


def draw(pipe: Any, steps: int = 3, **options: Any) -> Any:
    return pipe(
        PROMPT, num_inference_steps=steps, height=64, width=64, output_type="np",
        generator=torch.Generator().manual_seed(0), **options,
    ).images  # fmt: skip


def edit(pipe: Any, *edits: Any) -> Any:
    return xattn.edit(
        pipe, PROMPT, *edits, num_inference_steps=3, height=64, width=64, output_type="np",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def maps_of(trace: xattn.Trace) -> list[torch.Tensor]:
    return [trace.run.maps(n) for n in range(len(trace.run.layers))]


@pytest.mark.parametrize("family", [tiny.sd1, tiny.sd2, tiny.sdxl])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_exact_and_its_maps_are_those_of_float32(
    family: Callable[..., Any], dtype: torch.dtype
) -> None:
    pipe = on_cuda(family, dtype)
    before, plain = parts(pipe), draw(pipe)
    with xattn.record(pipe, dtype=torch.float32) as trace:
        np.testing.assert_array_equal(plain, draw(pipe))
    assert_same_parts(before, parts(pipe))
    assert np.isfinite(plain).all()
    reference = on_cuda(family)
    with xattn.record(reference, dtype=torch.float32) as expected:
        draw(reference)
    for found, wanted in zip(maps_of(trace), maps_of(expected), strict=True):
        assert torch.isfinite(found).all()
        # the first step's: later ones see the image's own drift
        torch.testing.assert_close(found[0], wanted[0], atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_logits_beyond_float16_do_not_overflow(dtype: torch.dtype) -> None:
    pipe = on_cuda(dtype=dtype)
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
                weight.mul_(60)
    with xattn.record(pipe) as trace:
        draw(pipe)
    for maps in maps_of(trace):
        assert torch.isfinite(maps).all()
        assert float(maps.max()) <= 1.001


def test_autocast_is_respected() -> None:
    pipe = on_cuda()
    with torch.autocast("cuda", torch.float16):
        plain = draw(pipe)
        with xattn.record(pipe) as trace:
            np.testing.assert_array_equal(plain, draw(pipe))
    sums = torch.stack([maps.sum(-3) for maps in maps_of(trace)[:1]])
    assert float(sums.max()) <= 1.002


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("to", ["cpu", "cuda"])
@pytest.mark.parametrize("keep", [("step", "layer"), ("layer",)])
def test_no_step_waits_for_the_device(to: str, keep: tuple[str, ...]) -> None:
    pipe = on_cuda(dtype=torch.float16)
    pipe.scheduler.set_timesteps(3)
    states = pipe.encode_prompt(PROMPT, "cuda", 1, False)[0]
    latents = torch.randn(1, 4, 32, 32, device="cuda", dtype=torch.float16)
    times = pipe.scheduler.timesteps.to("cuda")
    pipe.unet(latents, times[0], encoder_hidden_states=states)
    torch.cuda.synchronize()
    with no_synchronisation(), torch.no_grad():  # the UNet itself waits for nothing
        pipe.unet(latents, times[1], encoder_hidden_states=states)
    with xattn.record(
        xattn.Loop(
            pipe.unet, tokenizer=pipe.tokenizer, prompt=PROMPT, scheduler=pipe.scheduler
        ),
        to=to, keep=keep,
    ) as trace, torch.no_grad():  # fmt: skip
        pipe.unet(latents, times[0], encoder_hidden_states=states)  # the buffers are made here
        torch.cuda.synchronize()
        with no_synchronisation():
            for time in times[1:]:
                pipe.unet(latents, time, encoder_hidden_states=states)
    assert trace.run.done == 3
    assert all(torch.isfinite(maps).all() for maps in maps_of(trace))


def test_maps_that_leave_the_device_are_those_that_stay() -> None:
    pipe = on_cuda(dtype=torch.float16)
    traces = []
    for to in ("cpu", "cuda"):
        with xattn.record(pipe, to=to) as trace:
            draw(pipe, steps=6)
        traces.append(trace)
    for a, b in zip(*map(maps_of, traces), strict=True):
        assert torch.equal(a, b)


OFFLOADS: dict[str, Callable[[Any], Any]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group": lambda pipe: pipe.unet.enable_group_offload(
        torch.device("cuda"), torch.device("cpu"), offload_type="leaf_level", use_stream=True
    ),
}


@pytest.mark.parametrize("name", OFFLOADS)
def test_offload_is_exact(name: str) -> None:
    pipe = tiny.sd1().to(torch.float16)
    if name == "group":
        for part in (pipe.vae, pipe.text_encoder):
            part.to("cuda")
    OFFLOADS[name](pipe)
    plain = draw(pipe)
    with xattn.record(pipe) as trace:
        np.testing.assert_array_equal(plain, draw(pipe))
    np.testing.assert_array_equal(plain, draw(pipe))
    assert trace.run.done == 3
    result = edit(pipe, [], xattn.Replace("red", "blue"))
    np.testing.assert_array_equal(result.source, result.images[0])
    assert not np.array_equal(result.source, result.images[1])


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_an_empty_edit_changes_nothing(dtype: torch.dtype) -> None:
    pipe = on_cuda(dtype=dtype)
    plain = pipe(
        [PROMPT] * 2, num_inference_steps=3, height=64, width=64, output_type="np",
        generator=[torch.Generator().manual_seed(0) for _ in range(2)],
    ).images  # fmt: skip
    result = edit(pipe, [])
    np.testing.assert_array_equal(plain, np.stack([result.source, result.images[0]]))


def test_xformers_is_refused_before_sampling() -> None:
    pytest.importorskip("xformers")
    pipe = on_cuda(dtype=torch.float16)
    pipe.enable_xformers_memory_efficient_attention()
    with pytest.raises(TypeError, match="disable_xformers"), xattn.record(pipe):
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_unet_is_recorded_also_in_cuda_graphs(mode: str) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    pipe = on_cuda(dtype=torch.float16)
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, mode=mode)
    plain = draw(pipe, steps=6)
    with xattn.record(pipe) as trace:
        image = draw(pipe, steps=6)
        np.testing.assert_allclose(plain, image, atol=0.02)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    eager = on_cuda(dtype=torch.float16)
    with xattn.record(eager) as expected:
        draw(eager, steps=6)
    for found, wanted in zip(maps_of(trace), maps_of(expected), strict=True):
        torch.testing.assert_close(found[0], wanted[0], atol=5e-3, rtol=0)
    torch._dynamo.reset()


def test_memory_on_the_device_is_what_was_declared() -> None:
    pipe = on_cuda(dtype=torch.float16)
    draw(pipe)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    draw(pipe, steps=10)
    plain = torch.cuda.max_memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    with xattn.record(pipe, to="cuda") as trace:
        draw(pipe, steps=10)
    recorded = torch.cuda.max_memory_allocated() - before
    # the declared maps, the staging buffer of a step, and some room of the allocator
    assert recorded <= plain + trace.nbytes * 1.5 + 8 * 2**20


def test_a_batch_on_the_device_can_be_resumed(tmp_path: Path) -> None:
    pipe = on_cuda(dtype=torch.float16)
    items = [{"prompt": f"a {c} car", "steps": 2, "size": [64, 64]} for c in ("red", "blue")] * 4
    assert batch.run(pipe, items[:6], tmp_path / "one", batch_size=2).ok
    assert batch.run(pipe, items, tmp_path / "one", batch_size=2, resume=True).drawn == 2
    assert batch.run(pipe, items, tmp_path / "two", batch_size=2).drawn == 8
    one, two = (
        {str(p.relative_to(tmp_path / n)): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in ("one", "two")
    )
    assert one == two


def test_a_group_that_does_not_fit_the_device_is_listed(tmp_path: Path) -> None:
    pipe = on_cuda(dtype=torch.float16)
    items: list[dict[str, Any]] = [{"prompt": "a car", "steps": 1, "size": [64, 64]}] * 2
    items.append({"prompt": "a car", "steps": 1, "size": [8192, 8192]})
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        report = batch.run(pipe, items, tmp_path, batch_size=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert report.drawn == 2
    assert [failure.line for failure in report.failures] == [3]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_write_what_one_writes(tmp_path: Path) -> None:
    tiny.sd1().save_pretrained(tmp_path / "model")
    lines = [
        json.dumps({"prompt": f"a {c} car", "steps": 2, "size": [64, 64]})
        for c in ("red", "blue", "green") * 8
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    found = []
    for count in (1, 2):
        out = tmp_path / str(count)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count),
            "-m", "xattn.cli", "batch", str(tmp_path / "p.jsonl"), "--out", str(out),
            "--model", str(tmp_path / "model"), "--batch-size", "4", "--quiet",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=300, env={**os.environ})
        found.append({p.name: p.read_bytes() for p in out.rglob("*.*")})
    assert found[0] == found[1]
