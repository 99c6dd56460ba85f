"""The block: install, follow the calls, drive the instruments, restore."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.chain import Chain
from xattn.processors.install import install, remove, remove_stored
from xattn.processors.wrapping import chain_of, innermost, is_wrapped, unwrap
from xattn.session import events
from xattn.session.instrument import Instrument
from xattn.session.locator import Locator
from xattn.session.origin import Following, Origin, Turn
from xattn.session.patching import around_calls, is_compiled
from xattn.session.sampling import Asked, Sampling
from xattn.session.threads import ThreadGuard


@contextmanager
def opened(origin: Origin, instruments: Sequence[Instrument]) -> Iterator[Block]:
    """Install instruments in a denoiser, drive them by its calls, and restore it at the end.

    Raises:
        TypeError: a layer computes attention out of xattn's reach.
    """
    block = Block(origin, instruments)
    with block.installed():
        yield block


class Block:
    """The inside of a ``with``: one or more runs, and the instruments acting in them.

    Attributes:
        sampling: the current run; None between runs.
    """

    def __init__(self, origin: Origin, instruments: Sequence[Instrument]) -> None:
        self.origin = origin
        self.instruments = tuple(instruments)
        self.guard = ThreadGuard()
        self.models = tuple(origin.components())
        self._layers_of = [origin.family.layers(model, prefix) for prefix, model in self.models]
        self.layers: tuple[AttentionLayer, ...] = tuple(
            x for found in self._layers_of for x in found
        )
        self.chains = _chains(self.layers, self.instruments)
        self.sampling: Sampling | None = None
        self._following: Following | None = None
        self._asked = origin.asked()
        self._fresh: Asked | None = None  # from an encode_prompt during a run
        self._calls: dict[str, DenoiserCall] = {}  # in progress, by component
        self._ended_step: int | None = None  # waits for after_step
        self._undrawn: Sampling | None = None  # the run whose pictures are still to come

    # -- installing and restoring ------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Install the processors and hooks, and always remove them at the end."""
        with ExitStack() as stack:
            stack.callback(self._eject)
            self._inject()
            for number, (_, model) in enumerate(self.models):
                stack.enter_context(
                    around_calls(
                        model, self._before(number), self._after(number), first=self.steers
                    )
                )
            stack.enter_context(self.origin.watched(self.receive))
            stack.callback(self.end)
            yield

    def _inject(self) -> None:
        for layer, chain in self.chains.items():
            install(layer.module, chain)

    def _eject(self) -> None:
        for layer, chain in self.chains.items():
            remove(layer.module, chain)
        for _, model in self.models:
            remove_stored(model)

    def _refuse_inside_edits(self) -> None:
        """Raise RuntimeError if a layer is already edited: its editor would bypass this block."""
        for layer, chain in self.chains.items():
            below = layer.module.processor
            while is_wrapped(below) and chain_of(below) is not chain:
                below = unwrap(below)
            while is_wrapped(below := unwrap(below)):
                other = chain_of(below)
                if other is not None and other.edits:
                    raise RuntimeError(
                        "a recording or an edit was begun inside editing(), where rows are edited "
                        "already: start the recording first, or read session.trace"
                    )

    # -- the pipeline's events ---------------------------------------------------------------------

    def receive(self, event: events.Event) -> None:
        """Handle an event of the pipeline."""
        match event:
            case events.Asking():
                # claimed from here on: two pipelines can share one denoiser
                self.guard.claim() if self.sampling is None else self.guard.check()
            case events.Encoded(asked):
                if self.sampling is None:
                    self._asked = asked
                else:  # the current run was cut short, or someone only wants embeddings
                    self._fresh = asked
            case events.Pictures(images):
                drawn, self._undrawn = self._undrawn, None  # later pictures belong to another run
                if drawn is not None:
                    for instrument in self.instruments:
                        instrument.pictures(drawn, images, ended=self.sampling is None)
            case events.Ended():
                self.end()
                self.check_stepped()

    # -- calls -------------------------------------------------------------------------------------

    def _before(self, number: int) -> Any:
        return lambda arguments: self.before_call(number, arguments)

    def _after(self, number: int) -> Any:
        return lambda output: self.after_call(self.models[number][0], output)

    @property
    def steers(self) -> bool:
        """Whether an instrument may change the denoiser's sample; others then see the changed."""
        return any(instrument.steers for instrument in self.instruments)

    def before_call(self, number: int, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Prepare a denoiser call; at a run's first, lay out all axes and bytes.

        Args:
            number: which of the models is called.
            arguments: its arguments, by name.

        Returns:
            The arguments to make the call with, or None for its own.
        """
        if self._asked is not None or self._fresh is not None:
            self.guard.check()
        component = self.models[number][0]
        self._calls.pop(component, None)
        for layer, one in self.chains.items():
            if layer.component == component:
                one.sleep()
        call = self.origin.family.read(arguments, component)
        turn = self.origin.turn(call, self._following, self._asked, self._fresh)
        if turn is Turn.PASS:
            return None
        self._inject()  # wrap processors replaced since the last call
        self._refuse_inside_edits()
        if turn is not Turn.NEXT:
            self._begin(turn, call)
        assert self.sampling is not None
        self._place(call)
        self.check_stepped()
        for instrument in self.instruments:
            instrument.before_call(self.sampling, call)
        self._wake(number)
        self._calls[component] = call
        return self._steered(call, arguments) if self.steers else None

    def _wake(self, number: int) -> None:
        """Let one model's layers handle the call; another one of the same name has its turn."""
        for layer, one in self.chains.items():
            if layer.component == self.models[number][0]:
                one.wake() if layer in self._layers_of[number] else one.sleep()

    def _steered(self, call: DenoiserCall, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments as changed by the instruments that steer."""
        assert self.sampling is not None
        changed = None
        for instrument in self.instruments:
            sample = instrument.steer(self.sampling, call, changed or arguments)
            if sample is not None:
                changed = {
                    name: sample if value is call.sample else value
                    for name, value in (changed or arguments).items()
                }
                call.sample = sample
        return changed

    def _begin(self, turn: Turn, call: DenoiserCall) -> None:
        asked = self._fresh if turn is Turn.FRESH else self._asked
        if self.origin.loop and self.sampling is None:
            self.check_stepped()  # of the run before, whose last step was not followed by a blend
        self.end()
        assert asked is not None
        self._asked, self._fresh = asked, None
        following = self.origin.follow(call, asked)
        sampling = Sampling(
            family=self.origin.family,
            denoiser=self.origin.denoiser,
            asked=following.asked,
            schedule=following.schedule,
            sample=call.sample,
            latent=call.latent,
            frames=call.frames,
            scheduler=self.origin.scheduler,
            compiled=is_compiled(self.origin.denoiser),
            loop=self.origin.loop,
            facts=self.origin.facts(),
        )
        self._ended_step = None
        self._following = following
        begun: list[Instrument] = []
        try:
            if following.rows.find(call) is None:
                raise RuntimeError("the denoiser received another text than the prompts")
            for instrument in self.instruments:
                _refuse_films(instrument, sampling)
                begun.append(instrument)
                instrument.begin(sampling)
        except BaseException:
            self._following = None
            for instrument in begun:
                instrument.end(sampling)
            raise
        self.sampling = self._undrawn = sampling
        self.guard.claim()

    def _place(self, call: DenoiserCall) -> None:
        """Fill in a call's number, its conditional rows, and the places of text and image."""
        following = self._following
        assert following is not None
        following.place(call)
        rows = following.rows.find(call)
        assert rows is not None
        call.conditional = rows
        family = self.origin.family
        for layer, chain in self.chains.items():
            if layer.component != call.component:
                continue
            chain.nth = layer.nth if call.nth is None else call.nth
            both = layer.role in ("joint", "added")
            placed = both or (layer.role == "cross" and call.layout is not None)
            chain.locate = Locator(family, call, layer) if placed else None

    def after_call(self, component: str, output: Any) -> None:
        """Hand on the result of a denoiser call, and end the run after its last call."""
        call = self._calls.get(component)
        if call is None or component or self.sampling is None or not self.guard.is_here:
            return  # asleep, a ControlNet's, or the end of a call begun by another thread
        call.output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        self._check_seen(call)
        for instrument in self.instruments:
            instrument.after_call(self.sampling, call)
        following = self._following
        assert following is not None
        following.number += 1
        schedule = following.schedule
        if call.ends_step:
            self._ended_step = call.step
        if schedule is not None and following.number >= schedule.calls:
            self.end()

    def _check_seen(self, call: DenoiserCall) -> None:
        for layer, chain in self.chains.items():
            if not chain.blind:
                continue
            if call.number and not chain.edits:
                raise RuntimeError(
                    f"layer {layer.name} was left out of a denoiser call (is its attention cached "
                    "or skipped?): its maps would belong to another step; record without it"
                )
            name = type(innermost(layer.module.processor)).__name__
            raise RuntimeError(
                f"layer {layer.name} computes attention out of xattn's reach ({name}); call "
                'set_default_attn_processor() or set_attention_backend("native") of the '
                "pipeline's unet or transformer first"
            )

    def end(self) -> None:
        """Complete the current run, whether finished or cut short."""
        # in this order: another thread's call is refused for as long as prompts are known
        sampling, self.sampling, self._following = self.sampling, None, None
        self._asked, self._fresh = self.origin.asked(), None
        if sampling is None:
            return
        for chain in self.chains.values():
            chain.sleep()
        self._calls.clear()
        self.guard.release()
        for instrument in self.instruments:
            instrument.end(sampling)

    # -- steps -------------------------------------------------------------------------------------

    def after_step(self, latents: Tensor) -> Tensor:
        """Return the latents after a scheduler step, as changed by the instruments.

        Between the two halves of a second-order step they are returned unchanged.
        """
        step, self._ended_step = self._ended_step, None
        if step is None:
            return latents
        for instrument in self.instruments:
            latents = instrument.after_step(step, latents)
        return latents

    def check_stepped(self) -> None:
        """Raise RuntimeError if a step ended without ``after_step``."""
        if not any(instrument.between_steps for instrument in self.instruments):
            return
        step, self._ended_step = self._ended_step, None
        if step is None:
            return
        how = (
            "call latents = session.blend(latents) after each of the scheduler's steps"
            if self.origin.loop
            else "call the pipeline with callback_on_step_end=session.callback"
        )
        raise RuntimeError(f"step {step} ended without LocalBlend: {how}")


def _chains(
    layers: Sequence[AttentionLayer], instruments: Sequence[Instrument]
) -> dict[AttentionLayer, Chain]:
    found = [instrument.handlers(layers) for instrument in instruments]
    chains = {}
    for layer in layers:
        handlers = [each[layer] for each in found if layer in each]
        if handlers:
            chains[layer] = Chain(layer.name, layer.heads, handlers, layer.nth, layer.rowwise)
    return chains


def _refuse_films(instrument: Instrument, sampling: Sampling) -> None:
    """Raise ValueError if an instrument knows images alone, and a video is drawn."""
    if sampling.frames > 1 and not instrument.films:
        raise ValueError(
            f"videos can't be had with {type(instrument).__name__}: of several frames, the maps of "
            "words are recorded alone; leave out affinity=, previews=, also=, edits and goals, or "
            "draw one frame"
        )
