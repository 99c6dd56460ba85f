"""``python -m benchmarks``: measure, print the tables, and write them beside the results."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import documentation, page

QUICK = ("speed", "memory", "truth", "batch")


def measure(part: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measures one part, and yields what there is of it so far."""
    # imported where they are used: --docs needs none of them
    if part == "speed":
        from benchmarks import pictures, speed

        usual = [name for name in speed.MODELS if name != "sdxl" or options.full]
        before: dict[str, Any] = {}
        if options.models:  # measured again, merged with the other models' results
            before = page.read(options.out).get("speed", {}).get("result", {})
        chosen = options.models.split(",") if options.models else usual
        for new in speed.measure(options.quick, chosen):
            found = before | new
            pictures.draw_speed(found, options.out / "speed.png")
            yield found
    elif part == "memory":
        from benchmarks import speed

        yield speed.measure_bytes()
    elif part == "truth":
        from benchmarks import pictures, truth

        before = page.read(options.out).get("truth", {}).get("result", {})
        chosen = options.models.split(",") if options.models else truth.MODELS
        for found in truth.measure(40 if options.quick else 200, chosen, before):
            pictures.draw_grounding(found["grounding"], options.out)
            yield found
    elif part in ("batch", "edits", "schedules", "forms"):
        from benchmarks import attention_forms, batch, edits, schedules

        mains = {"batch": batch, "edits": edits, "schedules": schedules, "forms": attention_forms}
        quick = ["--quick"] if options.quick else []
        mains[part].main([*quick, "--out", str(options.out)])  # each writes its own files
    else:
        from benchmarks import peers

        timed: dict[str, Any] = {}
        for model, pairs in (("bundled", 4 if options.quick else 12), ("sd15", 4)):
            if model == "bundled" or not options.quick:
                timed[model] = peers.measure_peers(options.peers, pairs, model)
                yield timed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    few = f"under five minutes on two cores: {', '.join(QUICK)}, on few cases"
    parser.add_argument("--quick", action="store_true", help=few)
    parser.add_argument("--full", action="store_true", help="SDXL's shape too (5 GB)")
    parser.add_argument(
        "--models",
        help="of speed: bundled,sd15,sdxl; of truth: unet,contextual,mmdit; the others stay",
    )
    parser.add_argument("--only", help=f"parts, with commas between: {','.join(page.PARTS)}")
    parser.add_argument("--out", type=Path, default=page.RESULTS)
    where = documentation.DOCS.relative_to(documentation.DOCS.parents[1])
    parser.add_argument("--docs", action="store_true", help=f"put the results there are in {where}")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path(tempfile.gettempdir()) / "xattn-peers",
        help="where the peers' environments are made and kept",
    )
    options = parser.parse_args(arguments)
    if options.docs:
        text = documentation.DOCS.read_text("utf-8")
        tables = documentation.summary(page.read(options.out))
        documentation.DOCS.write_text(documentation.with_tables(text, tables), "utf-8")
        return
    usual = QUICK if options.quick else page.PARTS
    parts = options.only.split(",") if options.only else list(usual)
    unknown = [part for part in parts if part not in page.PARTS]
    if unknown:
        parser.error(f"--only={options.only}: {unknown[0]!r} is none of {', '.join(page.PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    from benchmarks.machine import facts

    for part in parts:
        for found in measure(part, options):
            result = {"quick": options.quick, "machine": facts(), "result": found}
            text = json.dumps(result, indent=1) + "\n"
            (options.out / f"{part}.json").write_text(text, "utf-8")
    text = page.page(page.read(options.out))
    (options.out / "benchmarks.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
