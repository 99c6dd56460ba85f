"""Timing of the two forms of an edited cross-attention call, on values and on probabilities.

`python -m benchmarks.attention_forms [--device cuda]` writes `attention-forms.md` to
`benchmarks/results`. One guided batch of a source and its siblings; "keeps" is a step in which
siblings keep some tokens of their own (Refine, word schedules), "follows" one in which they
take everything from the source. Best of several rounds, alternating the forms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.page import table
from benchmarks.tally import RESULTS
from benchmarks.timing import one_thread
from xattn.processors.call import AttentionCall
from xattn.processors.editing import EditedCall
from xattn.processors.forms import CrossStep, EditedRows, on_probabilities, on_values

SHAPES = (
    (4096, 8, 40),  # Stable Diffusion 1 at 512 px, from its largest grid to its smallest
    (1024, 8, 80),
    (256, 8, 160),
    (64, 8, 160),
    (1024, 10, 64),  # Stable Diffusion 2 and XL
    (256, 20, 64),
    (64, 20, 64),
    (256, 2, 32),  # the bundled model
    (64, 4, 32),
)
TOKENS = 77


def compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def best(calls: Sequence[Callable[[], Tensor]], rounds: int, device: str) -> list[float]:
    """Return the shortest time of each call, in milliseconds."""
    times = [float("inf")] * len(calls)
    for call in calls:
        call()
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            times[i] = min(times[i], 1000 * (time.perf_counter() - start))
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both forms, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_forms")
    parser.add_argument("--quick", action="store_true", help="best of 3")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with one_thread():
        rows = measure(torch.device(options.device), 3 if options.quick else options.rounds)
    result = {"quick": options.quick, "machine": machine.facts(), "result": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "forms.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (options.out / "attention-forms.md").write_text(markdown(result), "utf-8")
    print(markdown(result))


HEAD = (
    "dtype", "queries", "heads x channels", "siblings", "plain",
    "keeps: values", "keeps: probabilities", "follows: values", "follows: probabilities",
)  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """Format the times as a page."""
    rows = [[*row[:4], *(f"{t:.2f}" for t in row[4:])] for row in result["result"]]
    parts = [
        "# Edited cross-attention: two forms",
        "`python -m benchmarks.attention_forms`: one thread, milliseconds for one layer's call of "
        'a guided batch. "Keeps" is a step in which siblings keep some tokens of their own, '
        '"follows" one in which they take everything from the source.',
        table(HEAD, rows),
        "The library takes probabilities on the CPU where a call has fewer queries than twice a "
        "head's channels, and values otherwise; on other devices always values, of which there "
        "are no figures yet.",
        f"*{machine.line(result['machine'])}*",
    ]
    return "\n\n".join(parts) + "\n"


def measure(device: torch.device, rounds: int) -> list[list[Any]]:
    """Return a row per shape: its description, and its times in the order of ``HEAD``."""
    rows: list[list[Any]] = []
    half = torch.bfloat16 if device.type == "cpu" else torch.float16
    for dtype in (torch.float32, half):
        for queries, heads, channels in SHAPES:
            for siblings in (1, 3):
                batch = 2 * (siblings + 1)
                shape = (batch, heads, queries, channels)
                query = torch.randn(shape, dtype=dtype, device=device)
                key, value = torch.randn(
                    2, batch, heads, TOKENS, channels, dtype=dtype, device=device
                )
                edited = EditedRows.of(list(range(siblings)), 1, siblings + 1, device, batch=batch)
                mix = torch.eye(TOKENS, device=device).expand(siblings, TOKENS, TOKENS) / 2
                own = torch.full((siblings, TOKENS), 0.5, device=device)
                keeps = CrossStep(edited, mix, own, True)
                follows = CrossStep(edited, 2 * mix, 0 * own, False)

                def values(step: CrossStep, q: Tensor = query, k: Tensor = key,
                           v: Tensor = value) -> Tensor:  # fmt: skip
                    return on_values(
                        AttentionCall(q, k, v, None, q.shape[-1] ** -0.5, compute), step
                    )

                def probs(step: CrossStep, q: Tensor = query, k: Tensor = key,
                          v: Tensor = value) -> Tensor:  # fmt: skip
                    call = AttentionCall(q, k, v, None, q.shape[-1] ** -0.5, compute)
                    edited = EditedCall(call, step, None).edited()
                    return on_probabilities(call, step, edited)

                times = best(
                    [
                        lambda q=query, k=key, v=value: compute(q, k, v),
                        lambda f=values, s=keeps: f(s),
                        lambda f=probs, s=keeps: f(s),
                        lambda f=values, s=follows: f(s),
                        lambda f=probs, s=follows: f(s),
                    ],
                    rounds,
                    device.type,
                )
                name = str(dtype).removeprefix("torch.")
                rows.append([name, f"{queries}", f"{heads} x {channels}", f"{siblings}", *times])
    return rows


if __name__ == "__main__":
    main()
