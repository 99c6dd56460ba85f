"""Components of the page: the prompt, the words and their map, the edit, the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from xattn.app.drawing import Service
from xattn.app.settings import Limits

STARTER = "a red car on a green lawn"
EXAMPLES = (
    STARTER,
    "a blue house and a yellow star on a green lawn",
    "a small red boat on the blue sea at night",
)
METHODS = (
    ("without the word (occlusion)", "occlusion"),
    ("over all orders (Shapley)", "shapley"),
    ("information, in nats", "information"),
)
LARGEST = "20mb"  # of a picture that is uploaded


def choosing(service: Service) -> Any:
    """Lay out the choice of the model; hidden where there is one alone."""
    names = service.shelf.names
    return gr.Dropdown(
        names, value=names[0], label="Model", elem_id="model", visible=len(names) > 1
    )


def asking(service: Service) -> list[Any]:
    """Lay out the prompt and what it is drawn with."""
    limits, factor = service.limits, service.shelf.factor()
    height, width = service.sides()
    prompt = gr.Textbox(
        STARTER, label="Prompt", lines=2, max_length=limits.prompt, elem_id="prompt-text"
    )
    with gr.Accordion("Sampling", open=False):
        negative = gr.Textbox("", label="Negative prompt", max_length=limits.prompt)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        steps = gr.Slider(
            1, limits.steps, min(30, limits.steps), step=1, label="Steps", elem_id="steps"
        )
        sides = [
            gr.Slider(factor, limits.side, side, step=factor, label=label)
            for label, side in (("Width", width), ("Height", height))
        ]
        guidance = gr.Slider(0, 30, 7.5, step=0.5, label="Guidance (1 is off)")
    goals = steering(limits)
    gr.Examples([[each] for each in EXAMPLES], [prompt], label="Examples", cache_examples=False)
    return [prompt, negative, seed, steps, *sides, guidance, *goals]


def steering(limits: Limits) -> list[Any]:
    """Lay out the goals to steer to; ``;`` stands between several."""
    forms = (
        ("present", "Should be there", "mug; fish"),
        ("bind", "Attribute = its noun", "pink=fish; blue=house"),
        ("place", "Word = place", "star=left; boat=0,0,0.5,1"),
        ("apart", "In different places", "cat=dog"),
    )
    with gr.Accordion("Steer", open=False, elem_id="goals"):
        return [
            gr.Textbox(
                "", label=label, placeholder=example, max_length=limits.prompt,
                elem_id=f"goal-{name}",
            )
            for name, label, example in forms
        ]  # fmt: skip


def giving(service: Service, examples: Sequence[tuple[str, str]]) -> list[Any]:
    """Lay out a picture of the visitor's, its text, and what edits of it are drawn with.

    Args:
        service: the pipeline's service.
        examples: pictures' files with their texts.
    """
    limits = service.limits
    picture = gr.Image(
        label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"],
        elem_id="given", height=240,
    )  # fmt: skip
    text = gr.Textbox(
        "", label="What it shows, in words", lines=2, max_length=limits.prompt,
        elem_id="given-text", placeholder=STARTER,
    )  # fmt: skip
    with gr.Accordion("Edits of it", open=False):
        steps = gr.Slider(
            1, limits.steps, min(30, limits.steps), step=1, label="Steps", elem_id="given-steps"
        )
        guidance = gr.Slider(0, 30, 5, step=0.5, label="Guidance (1 is off)")
    if examples:
        gr.Examples(
            [list(each) for each in examples], [picture, text], label="Examples",
            cache_examples=False,
        )  # fmt: skip
    return [picture, text, steps, guidance]


def downloads() -> list[Any]:
    """Lay out the files to take along."""
    kinds = (("Trace", "trace"), ("Report", "report"), ("Python script", "script"))
    with gr.Row():
        return [
            gr.DownloadButton(
                label, interactive=False, size="sm", min_width=80, elem_id=f"get-{name}"
            )
            for label, name in kinds
        ]


@dataclass(frozen=True)
class Seeing:
    """Components that show a word."""

    words: Any
    map: Any
    step: Any
    layer: Any
    opacity: Any
    about: Any
    ranked: Any

    @property
    def inputs(self) -> list[Any]:
        """Components that a map depends on."""
        return [self.words, self.step, self.layer, self.opacity]


def seeing(limits: Limits) -> Seeing:
    """Lay out the words, the map and its sliders."""
    words = gr.Radio(
        [], label="Words: click one to see where it acts", elem_id="words", interactive=True
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            picture = gr.Image(
                label="Where the word acts", type="pil", format="png", interactive=False,
                buttons=["download", "fullscreen"], elem_id="map", height=460,
                placeholder="Nothing drawn yet: press Draw",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=240):
            step = gr.Slider(0, limits.steps, 0, step=1, label="Step (0: all)", elem_id="step")
            layer = gr.Slider(0, 1, 0, step=1, label="Layer (0: mean)", elem_id="layer")
            opacity = gr.Slider(0, 1, 0.65, step=0.05, label="Opacity", elem_id="opacity")
            about = gr.Textbox(
                label="Shown", interactive=False, lines=2, max_lines=4, elem_id="shown"
            )
            ranked = gr.Dataframe(
                None, headers=["word", "share"], datatype="str", interactive=False,
                label="Click the picture: the words that act there", elem_id="ranked",
                max_height=220,
            )  # fmt: skip
    return Seeing(words, picture, step, layer, opacity, about, ranked)


@dataclass(frozen=True)
class Changing:
    """Components that change words and compare the results."""

    becomes: Any
    weight: Any
    added: Any
    places: Any
    apart: Any
    cross: Any
    own: Any
    changes: Any
    forget: Any
    button: Any
    which: Any
    compare: Any


def changing(limits: Limits) -> Changing:
    """Lay out the edit."""
    gr.Markdown("Click a word above, then change its text or its strength.")
    with gr.Row():
        becomes = gr.Textbox("", label="The word becomes", elem_id="becomes", max_length=100)
        weight = gr.Slider(
            -2, 5, 1, step=0.1, label="Strength (1: as it is, 0: removed)", elem_id="weight"
        )
    with gr.Row():
        added = gr.Textbox(
            "", label="Words to add at the end", placeholder="at night", elem_id="added",
            max_length=limits.prompt,
        )  # fmt: skip
        places = gr.Dropdown(
            [], value=[], multiselect=True, label="Only in the places of (anywhere if empty)",
            elem_id="places",
        )  # fmt: skip
    with gr.Accordion("Timing", open=False):
        cross = gr.Slider(0, 1, 0.8, step=0.05, label="Words follow the source: share of the run")
        own = gr.Slider(0, 1, 0.4, step=0.05, label="Layout follows the source: share of the run")
        apart = gr.Checkbox(
            False, label=f"An image for each change (at most {limits.edits})", elem_id="apart"
        )
    changes = gr.Textbox(label="Changes", interactive=False, lines=1, elem_id="changes")
    with gr.Row():
        forget = gr.Button("Forget changes", size="sm", elem_id="forget")
        button = gr.Button("Draw the edit", variant="primary", size="sm", elem_id="edit")
    which = gr.Radio([], label="Compare with", visible=False, elem_id="which")
    compare = gr.ImageSlider(
        label="Before | after", type="pil", format="png", interactive=False, elem_id="compare",
        buttons=["download", "fullscreen"], visible=False, max_height=520,
    )  # fmt: skip
    return Changing(
        becomes, weight, added, places, apart, cross, own, changes, forget, button, which, compare
    )


@dataclass(frozen=True)
class Reasons:
    """Components that show what words cause."""

    how: Any
    button: Any
    bars: Any
    beside: Any


def reasons() -> Reasons:
    """Lay out what each word causes, beside its attention."""
    gr.Markdown(
        "What does the picture lose without each word? Attention tells where a word is read; this "
        "tells what it causes."
    )
    with gr.Row():
        how = gr.Dropdown(list(METHODS), value="occlusion", label="Measured", elem_id="how")
        button = gr.Button("Explain", variant="primary", size="sm", elem_id="explain")
    pictures = {
        "type": "pil", "format": "png", "interactive": False, "visible": False,
        "buttons": ["download", "fullscreen"],
    }  # fmt: skip
    bars = gr.Image(label="What each word causes", show_label=False, elem_id="bars", **pictures)
    beside = gr.Image(label="The clicked word: causes | attention", elem_id="beside", **pictures)
    return Reasons(how, button, bars, beside)
