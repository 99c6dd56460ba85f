"""ImagePromptRecorder: attention to the images of an IP-Adapter, beside that to words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from xattn.models.adapters import adapts, added_calls, on_queries, sources_of
from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.models.family import named as named_layers
from xattn.processors.call import Handler
from xattn.processors.image_prompt import ImageKeys, Source
from xattn.records.buffer import Buffer
from xattn.records.options import Options
from xattn.records.room import check_room
from xattn.records.run import Layer, Run
from xattn.records.shape import Shape
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling
from xattn.text.prompt import Prompt

FORMS = ("attention", "share")


class ImagePromptRecorder(Instrument):
    """Keep maps of an image prompt's tokens in each layer; it runs after the recorder.

    Without an IP-Adapter in the pipeline it does nothing: "image" is then a word like others.

    Args:
        options: the recording's; layers always stay apart.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.keep = (options.keep & {"step", "head"}) | {"layer"}
        self.layers: dict[AttentionLayer, ImageKeys] = {}
        self._sources: tuple[Source, ...] = ()
        self._buffers: dict[str, Buffer] = {}

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer that an adapter can be loaded into."""
        own = [layer for layer in layers if layer.reads_text and not layer.component]
        wanted = self.options.layers
        globs = [wanted] if isinstance(wanted, str) else wanted
        if globs is not None:
            globs = [glob for glob in globs if not glob.startswith("controlnet.")]
        chosen = named_layers(own, globs or None)
        self.layers = {layer: ImageKeys(layer.name, on_queries) for layer in chosen}
        return self.layers

    # -- a run -------------------------------------------------------------------------------------

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the conditional rows; lay out the maps at the first call.

        Raises:
            MemoryError: they would not fit; the error names options that would.
            TypeError: the adapter is of a kind whose tokens can't be told apart.
        """
        own = {layer: keys for layer, keys in self.layers.items() if adapts(layer)}
        if call.component or not own:
            return
        if not self._buffers:
            self._lay_out(sampling, call, own)
        for buffer in self._buffers.values():
            if sampling.schedule is None and call.begins_step:
                buffer.end_step()
            buffer.staging.zero_()  # a layer at scale 0 doesn't attend to the image prompt
        for layer, keys in own.items():
            keys.live, keys.rows = True, call.conditional
            keys.calls = added_calls(layer, call.image_prompts, self._sources)

    def _lay_out(
        self, sampling: Sampling, call: DenoiserCall, own: Mapping[AttentionLayer, ImageKeys]
    ) -> None:
        self._sources = sources_of(next(iter(own)), call.image_prompts)
        shapes = {
            "attention": self._shape(sampling, own, sum(s.count for s in self._sources)),
            "share": self._shape(sampling, own, len(self._sources)),
        }
        whole = replace(shapes["share"], tokens=sum(shape.tokens for shape in shapes.values()))
        check_room(whole, sampling.device, "cpu")
        self._buffers = {form: Buffer(shapes[form], sampling.device, "cpu") for form in FORMS}
        for n, keys in enumerate(own.values()):
            keys.sources = self._sources
            keys.tokens, keys.shares = (self._buffers[form].views[n] for form in FORMS)
        run = sampling.run
        if run is not None:
            run.image_prompt = {form: self._run(run, shapes[form], form) for form in FORMS}

    def _shape(
        self, sampling: Sampling, layers: Mapping[AttentionLayer, Any], tokens: int
    ) -> Shape:
        return Shape(
            layers=tuple(Layer(x.name, sampling.grid(x), x.heads) for x in layers),
            images=sampling.images,
            tokens=tokens,
            steps=sampling.steps,
            keep=self.keep,
            dtype=self.options.dtype,
        )

    def _run(self, run: Run, shape: Shape, form: str) -> Run:
        sources = [[source.adapter, source.image, source.count] for source in self._sources]
        return replace(
            run,
            prompts=(Prompt.anonymous(shape.tokens),),
            prompt_of=(0,) * shape.images,
            positions=tuple(range(shape.tokens)),
            layers=shape.layers,
            keep=self.keep,
            store=self._buffers[form].store,
            info={"image prompt": sources, "form": form},
            images=[],
            estimates=None,
            affinity=None,
            concepts={},
            outputs={},
            image_prompt={},
        )

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Collect the maps written by the layers.

        Raises:
            RuntimeError: a layer attended to fewer images than its adapters have.
        """
        if call.component or not self._buffers:
            return
        for keys in self.layers.values():
            if keys.tokens is not None and keys.came != len(keys.calls):
                raise RuntimeError(
                    f"layer {keys.name} made {keys.came} attention calls behind the text's where "
                    f"{len(keys.calls)} to an image prompt were expected; please report the "
                    "adapter's configuration"
                )
        for buffer in self._buffers.values():
            buffer.end_call(call.ends_step)

    def _tell(self, sampling: Sampling) -> None:
        """Update what is readable of the image prompt's maps."""
        for form, buffer in self._buffers.items():
            if sampling.run is not None and form in sampling.run.image_prompt:
                kept = sampling.run.image_prompt[form]
                kept.done, kept.store = buffer.steps, buffer.store
                kept.timesteps = sampling.run.timesteps

    def end(self, sampling: Sampling) -> None:
        """Complete a run, whether finished or cut short."""
        for keys in self.layers.values():
            keys.tokens = keys.shares = None
        for buffer in self._buffers.values():
            if sampling.schedule is None:
                buffer.end_step()
            buffer.finish()
        self._tell(sampling)
        self._buffers = {}
