"""Whole prompt sets: drawn in groups, recorded, on one device or on many, resumable.

Items of the same settings are drawn together, ``batch_size`` at a time in the order of their lines;
an item with edits is a group of its own, whose siblings fill the batch. Groups are made before they
are divided among the processes: so what is drawn together, and with it every bit of the result,
doesn't depend on how many processes there are. The noise of an item comes from its own seed. A
group that the device has no memory for is drawn in halves, and those in theirs: always at the same
places. What rounding can see remains: another batch size (of a half too), device, dtype or (on the
CPU) number of threads may change the last bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image

from xattn.batch.drawing import Drawn, draw
from xattn.batch.folder import Writer
from xattn.batch.items import Failure, Items, Numbered, check_item, read_items, reason
from xattn.batch.layout import IMAGES, MAPS, Row
from xattn.batch.processes import Crew
from xattn.batch.settings import FORMATS, Progress, Report, Settings
from xattn.maps import select
from xattn.maps.measures import MEASURES
from xattn.records.run import Run
from xattn.results.trace import Trace


def run(
    pipe: Any,
    items: Items,
    out: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    keep: str | Sequence[str] = ("layer",),
    layers: str | Sequence[str] | None = None,
    dtype: torch.dtype = torch.float16,
    images: str | None = "png",
    resume: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Draw and record a set of prompts into a folder, which ``xattn.open_runs`` reads.

    Call it in every process of an ``accelerate launch`` or ``torchrun``, with a pipeline on
    ``PartialState().device`` and a folder that all of them see; groups of items are divided among
    them.

    A group that doesn't fit the device is drawn in halves. A bad item, a full disk, an item that
    doesn't fit stop nothing else: they are in the report, with their lines. A run that was
    interrupted goes on with ``resume=True``: what is done stays, and isn't done again.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline.
        items: a JSON Lines file or its lines as bytes, or ``Item``s, or mappings with an item's
            fields.
        out: a folder, new or empty unless it is resumed.
        batch_size: how many items are drawn together.
        keep: which of the axes "step", "layer", "head" of the maps stay apart.
        layers: names or globs of the layers to record.
        dtype: of the kept maps.
        images: "png", "webp" (lossless), or None to keep no images.
        resume: whether to go on with a batch that ``out`` already holds.
        progress: ``progress(writer, sizes)`` gives a context in which progress is shown, on the
            main process.

    Raises:
        ValueError: an option makes no sense, ``out`` holds something else, or another run is
            filling it.
        OSError: ``items`` can't be read, or ``out`` can't be made.

    Example:
        >>> report = xattn.batch.run(pipe, [{"prompt": "a red car"}, {"prompt": "a boat"}], "runs")
        >>> print(report)
        2 items drawn
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    settings = Settings(
        keep=(keep,) if isinstance(keep, str) else tuple(keep),
        layers=None
        if layers is None
        else ((layers,) if isinstance(layers, str) else tuple(layers)),
        dtype=dtype,
        images=images,
    )
    good, failures = read_items(items)
    good, wrong = _checked(good, pipe)
    crew, writer = Crew(), Writer(Path(out))
    with closing(writer):
        done = crew.by_main(lambda: writer.prepare(settings.to_json(pipe), resume))
        waiting, other = _waiting(good, done)
        groups = divide(waiting, batch_size)
        sizes = {_group_name(group): len(group) for group in groups}
        shown = progress(writer, sizes) if progress and crew.is_main else nullcontext()
        with shown, _quiet(pipe):
            ours = _draw_all(pipe, crew.share(groups), settings, writer)
            failed = [*failures, *wrong, *other, *crew.gather(ours)]
            failed += crew.by_main(lambda: _finish(writer, failed))
    failed.sort(key=lambda failure: failure.line)
    lost = {failure.line for failure in failed}
    drawn = sum(numbered.line not in lost for numbered in waiting)
    return Report(drawn, len(good) - len(waiting) - len(other), tuple(failed))


# -- what is to be done


def divide(items: Sequence[Numbered], batch_size: int) -> list[list[Numbered]]:
    """Return groups of items to be drawn together, in the order of their first lines."""
    groups: list[list[Numbered]] = []
    open_: dict[Any, list[Numbered]] = {}
    for numbered in items:
        key = numbered.item.settings
        if numbered.item.edits:
            groups.append([numbered])
            continue
        if len(open_.get(key, ())) in (0, batch_size):
            open_[key] = []
            groups.append(open_[key])
        open_[key].append(numbered)
    return groups


def _group_name(group: Sequence[Numbered]) -> str:
    """Return a name that groups of other items never have: the first line, and a hash of all."""
    said = "\n".join(f"{numbered.name} {numbered.item.digest}" for numbered in group)
    return f"{group[0].line:06d}-{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"


def _checked(items: Sequence[Numbered], pipe: Any) -> tuple[list[Numbered], list[Failure]]:
    good, failures = [], []
    for numbered in items:
        try:
            check_item(numbered.item, pipe)
            good.append(numbered)
        except Exception as error:
            failures.append(Failure(numbered.line, reason(error)))
    return good, failures


def _waiting(
    items: Sequence[Numbered], done: Mapping[str, str]
) -> tuple[list[Numbered], list[Failure]]:
    """Return the items that aren't done, and a failure for each name taken by other content."""
    waiting, failures = [], []
    for numbered in items:
        before = done.get(numbered.name.casefold())
        if before is None:
            waiting.append(numbered)
        elif before != numbered.item.digest:
            failures.append(
                Failure(
                    numbered.line,
                    f"item {numbered.name!r} was drawn before from other content and stays as it "
                    "is: give this line a name that the folder does not have; an item without a "
                    "seed takes the number of its line, so give one where lines have moved",
                )
            )
    return waiting, failures


# -- drawing


def _draw_all(
    pipe: Any, groups: Sequence[list[Numbered]], settings: Settings, writer: Writer
) -> list[Failure]:
    """Draw groups, and write each while the next one is drawn."""
    failures: list[Failure] = []
    with ThreadPoolExecutor(1, thread_name_prefix="xattn-batch") as pool:
        pending: tuple[list[Numbered], Future[None]] | None = None
        for group, drawn in (part for whole in groups for part in _parts(pipe, whole, settings)):
            if isinstance(drawn, list):
                failures += drawn
                continue
            failures += _settle(pending)
            pending = group, pool.submit(_store, group, drawn, settings, writer)
            del drawn
        failures += _settle(pending)
    return failures


def _parts(
    pipe: Any, group: list[Numbered], settings: Settings
) -> Iterator[tuple[list[Numbered], Drawn | list[Failure]]]:
    """Draw a group, in halves where the device lacks memory for the whole; or yield failures.

    Each part is stored by itself, under a name of its own.
    """
    halve = False
    result: Drawn | list[Failure]
    try:
        result = draw(pipe, group, settings)
    except Exception as error:
        halve = len(group) > 1 and _is_short_of_memory(error)
        result = _failed(group, error)
    if not halve:
        yield group, result
        return
    clear_device_cache(garbage_collection=True)  # here, where the error and its tensors are gone
    middle = len(group) // 2
    for half in (group[:middle], group[middle:]):
        yield from _parts(pipe, half, settings)


def _is_short_of_memory(error: Exception) -> bool:
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return memory or should_reduce_batch_size(error)  # of the CPU's allocator, of cuDNN


def _settle(pending: tuple[list[Numbered], Future[None]] | None) -> list[Failure]:
    if pending is None:
        return []
    group, future = pending
    error = future.exception()
    if isinstance(error, Exception):
        return _failed(group, error)
    future.result()  # raises what is no Exception
    return []


def _failed(group: Sequence[Numbered], error: Exception) -> list[Failure]:
    return [Failure(numbered.line, reason(error)) for numbered in group]


# -- storing


def _store(group: Sequence[Numbered], drawn: Drawn, settings: Settings, writer: Writer) -> None:
    name, pictures, rows = _group_name(group), {}, []
    for number, (numbered, run) in enumerate(zip(group, drawn.runs, strict=True)):
        for i, label in enumerate(drawn.labels[number]):
            path = None
            if settings.images is not None:
                variant = f"~{i}" if i else ""
                path = f"{IMAGES}/{numbered.name}{variant}.{settings.images}"
                pictures[path] = _saving(drawn.images[number][i], settings.images)
            about: Row = {
                "line": numbered.line,
                "name": numbered.name,
                "prompt": run.prompt(i).text,
                "negative_prompt": numbered.item.negative_prompt,
                "seed": numbered.item.seed,
                "edit": label if i else None,
                "image": path,
                "maps": f"{MAPS}/{name}.safetensors",
                "run": number,
                "row": i,
                "digest": numbered.item.digest,
            }
            rows += [{**about, **measures} for measures in _measures(run, i, numbered.item.words)]
    writer.write(name, drawn.runs, pictures, rows)


def _saving(image: Image.Image, ending: str) -> Callable[[str], Any]:
    return lambda path: image.save(path, **FORMATS[ending])


def _measures(run: Run, image: int, words: Sequence[str] | None) -> Iterator[Row]:
    """Yield the measures of each word of an image; one row without any where it has no words."""
    trace = Trace([run])
    found = False
    for word in words if words is not None else select.kept_words(run, image):
        try:
            heat = trace.heatmap(word, image)
        except ValueError:  # a word of a sibling's prompt, or of the source's alone
            continue
        found = True
        yield {"word": word, **heat.measure()}  # JSON makes lists of the places
    if not found:
        yield dict.fromkeys(("word", *MEASURES))


def _finish(writer: Writer, failures: Sequence[Failure]) -> list[Failure]:
    try:
        writer.finish([asdict(f) for f in sorted(failures, key=lambda f: f.line)])
    except OSError as error:
        return [Failure(0, f"the index could not be written: {error}; resume to write it")]
    return []


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Hide the pipeline's own progress bars: one for each group would be too many."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
