"""The app: draw a prompt or give a picture, click its words, edit it, compare, ask why.

``serve`` listens on this machine alone unless told otherwise, and loads nothing from elsewhere.
Everything that isn't a button is in ``xattn.app.drawing``.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from xattn.app import parts, visits
from xattn.app.drawing import Service
from xattn.app.settings import Limits
from xattn.app.visits import Visit

__all__ = ["Limits", "Service", "build", "opened", "serve"]

IDLE = 3600  # seconds after which a visitor's drawing is forgotten
SWEEP = 600  # seconds between looks for old files
CSS = """
#words .wrap { gap: 6px; } #words label { cursor: pointer; }
#map img, #compare img { image-rendering: auto; }
footer { display: none !important; }
"""


def serve(
    pipe: Any,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    others: Mapping[str, Callable[[], Any]] | None = None,
) -> None:
    """Serve the app until it is interrupted, then remove its files.

    Args:
        pipe: a pipeline of a known family.
        model: where the pipeline came from, for the scripts; None for the bundled model.
        limits: what a visitor can ask for.
        host: the address to listen on.
        port: the port.
        others: functions that load other pipelines, by the names to choose them by.
    """
    with opened(pipe, model=model, limits=limits, host=host, port=port, others=others) as address:
        print(f"xattn: {address} (interrupt to stop)", flush=True)
        block_until_interrupted()


def block_until_interrupted() -> None:
    """Wait for an interrupt or a request to end; the caller then removes its files."""
    over = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: over.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        over.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def opened(
    pipe: Any,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    others: Mapping[str, Callable[[], Any]] | None = None,
) -> Iterator[str]:
    """Serve the app while the block runs; the block gets its address.

    Raises:
        OSError: the port is taken.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="xattn-app-") as root:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(root, "gradio"))
        service = Service(pipe, model, limits, Path(root), others)
        page = build(service)
        try:
            _, address, _ = page.queue(max_size=16, default_concurrency_limit=4).launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                inbrowser=False,
                ssr_mode=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                state_session_capacity=64,
                allowed_paths=[root],
                max_file_size=parts.LARGEST,
                theme=gr.themes.Base(),
                css=CSS,
            )
            yield address
        finally:
            page.close()
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def build(service: Service) -> Any:
    """Build the page."""
    with gr.Blocks(
        title="xattn", analytics_enabled=False, delete_cache=(SWEEP, IDLE), fill_width=True
    ) as page:
        visit = gr.State(Visit(), time_to_live=IDLE, delete_callback=Visit.leave)
        gr.Markdown(
            "## xattn\nDraw a prompt or give a picture, click a word to see where it acts, change "
            "it, compare, and ask why."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                model = parts.choosing(service)
                with gr.Tab("Draw", elem_id="tab-draw"):
                    asked = parts.asking(service)
                    button = gr.Button("Draw", variant="primary", elem_id="draw")
                with gr.Tab("A picture of yours", elem_id="tab-given"):
                    given = parts.giving(service, service.examples())
                    looking = gr.Button("Look", variant="primary", elem_id="look")
                files = parts.downloads()
            with gr.Column(scale=2, min_width=320):
                seen = parts.seeing(service.limits)
                with gr.Tab("Edit"):
                    changing = parts.changing(service.limits)
                with gr.Tab("Why"):
                    why = parts.reasons()
        starts = (([model, *asked], button), ([model, *given], looking))
        _wire(service, visit, starts, seen, changing, why, files)
    return page


def _wire(
    service: Service,
    visit: Any,
    starts: Sequence[tuple[list[Any], Any]],
    seen: parts.Seeing,
    changing: parts.Changing,
    why: parts.Reasons,
    files: list[Any],
) -> None:
    drawn = [
        visit, seen.words, seen.step, seen.layer, seen.map, seen.about, seen.ranked,
        changing.becomes, changing.weight, changing.places, changing.changes, changing.which,
        changing.compare, why.bars, why.beside, *files,
    ]  # fmt: skip
    one = {"concurrency_limit": 1, "concurrency_id": "pipeline", "api_visibility": "private"}
    (asked, button), (given, looking) = starts
    waits = {**one, "show_progress_on": [seen.map]}
    for trigger in (button.click, asked[1].submit):
        trigger(visits.drawer(service), [visit, *asked], drawn, **waits)
    for trigger in (looking.click, given[2].submit):
        trigger(visits.looker(service), [visit, *given], drawn, **waits)
    why.button.click(
        visits.explainer(service),
        [visit, why.how, seen.words],
        [visit, why.bars, why.beside],
        show_progress_on=[why.button], **one,
    )  # fmt: skip
    _wire_words(visit, seen, changing, why)
    changing.button.click(
        visits.editor(service),
        [visit, seen.words, changing.becomes, changing.weight, changing.added, changing.places,
         changing.apart, changing.cross, changing.own],
        [visit, changing.changes, changing.which, changing.compare, *files],
        show_progress_on=[changing.button], **one,
    )  # fmt: skip


def _wire_words(
    visit: Any, seen: parts.Seeing, changing: parts.Changing, why: parts.Reasons
) -> None:
    quick = {"show_progress": "hidden", "api_visibility": "private"}
    shown = [seen.map, seen.about]
    seen.map.select(visits.rank, [visit, seen.step, seen.layer], seen.ranked, **quick)
    seen.words.change(visits.beside, [visit, seen.words], why.beside, **quick)
    word = [changing.becomes, changing.weight]
    seen.words.change(visits.select, [visit, *seen.inputs], [*shown, *word], **quick)
    for slider in (seen.step, seen.layer, seen.opacity):
        slider.input(visits.look, [visit, *seen.inputs], shown, trigger_mode="always_last", **quick)

    for field_ in word:
        field_.input(
            visits.note, [visit, seen.words, *word, changing.added], [visit, changing.changes],
            trigger_mode="always_last", **quick,
        )  # fmt: skip
    changing.added.input(visits.listed, [visit, changing.added], changing.changes, **quick)
    changing.forget.click(
        visits.forget,
        [visit, seen.words],
        [visit, *word, changing.added, changing.changes],
        **quick,
    )
    changing.which.change(visits.compare, [visit, changing.which], changing.compare, **quick)
