"""Cost of a batch: speed against plain batched sampling, and memory over many items.

Run as ``python -m benchmarks.batch``; writes ``benchmarks/results/batch.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

import xattn
from benchmarks import machine
from benchmarks.tally import RESULTS
from benchmarks.timing import compare
from xattn import batch

COLOURS = ("red", "blue", "green", "yellow")
THINGS = ("car", "boat", "house", "tree")


def prompts(number: int) -> list[str]:
    return [f"a {COLOURS[i % 4]} {THINGS[i // 4 % 4]} on a green lawn" for i in range(number)]


def speed(pipe: Any, folder: Path, items: int, batch_size: int, steps: int, pairs: int) -> Any:
    """Return the time of a recorded and saved batch, relative to plain sampling."""
    texts, runs = prompts(items), count()

    def plain() -> None:
        for start in range(0, items, batch_size):
            some = texts[start : start + batch_size]
            seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
            pipe(some, generator=seeds, num_inference_steps=steps)

    def recorded() -> None:
        asked = [{"prompt": text, "steps": steps} for text in texts]
        report = batch.run(pipe, asked, folder / f"{next(runs)}", batch_size=batch_size)
        assert report.ok, report.failures

    return compare(plain, {"batch": recorded}, pairs)


def memory(folder: Path, items: int, side: int) -> int:
    """Return the peak resident bytes of a separate process drawing a batch."""
    work = multiprocessing.get_context("spawn").Process(
        target=_draw, args=(folder / f"memory-{items}", items, side)
    )
    work.start()
    _, status, used = os.wait4(work.pid or 0, 0)
    if status:
        raise RuntimeError(f"the batch of {items} items failed")
    return int(used.ru_maxrss) * 1024


def _draw(out: Path, items: int, side: int) -> None:
    torch.set_num_threads(1)
    pipe = xattn.demo(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    asked = [{"prompt": text, "steps": 1, "size": [side, side]} for text in prompts(items)]
    if not batch.run(pipe, asked, out).ok:
        raise SystemExit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair, 50 items for the memory")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--many", type=int, default=500)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if given.quick:
        given.pairs, given.many, given.items, given.steps = 1, 50, 8, 10
    pipe = xattn.demo(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bytes_of = {n: memory(folder, n, 32) for n in (10, given.many)}
        timing = speed(pipe, folder, given.items, given.batch_size, given.steps, given.pairs)
    ratio = timing["ratios"]["batch"]
    found = {
        "items": given.items,
        "batch_size": given.batch_size,
        "steps": given.steps,
        "time": timing,
        "throughput_ratio": {kind: 1 / ratio[kind]["median"] for kind in ("wall", "cpu")},
        "peak_bytes": bytes_of,
        "growth_bytes_per_item": (bytes_of[given.many] - bytes_of[10]) / (given.many - 10),
    }
    result = {"quick": given.quick, "machine": machine.facts(), "result": found}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "batch.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["throughput_ratio"]), json.dumps(bytes_of))


if __name__ == "__main__":
    main()
