"""Heat maps of words inside one denoiser call, with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xattn.maps.daam import to_grid
from xattn.maps.select import daam_layers, kept_positions
from xattn.models.family import AttentionLayer, DenoiserCall, choose
from xattn.processors.call import Handler
from xattn.processors.live import Live
from xattn.records.room import check_room_for
from xattn.records.run import Layer
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling
from xattn.text.prompt import Prompt, WordError, Words

Grid = tuple[int, int]


class LiveRecorder(Instrument):
    """Keep the maps of each denoiser call with their gradients, until the next call.

    Args:
        words: the words, phrases or positions to keep; every token of the prompts by default.
        layers: names or globs of layers; those of heat maps by default.

    Attributes:
        sampling: the run of the current call; None before the first.
        positions: the kept positions of the token axis.
        nbytes: the bytes kept for the way back from the current call's maps.
    """

    def __init__(
        self,
        words: Sequence[str | int] | None = None,
        layers: str | Sequence[str] | None = None,
    ) -> None:
        self.words = words
        self.globs = layers
        self.sampling: Sampling | None = None
        self.positions: tuple[int, ...] = ()
        self.nbytes = 0
        self._handlers: dict[AttentionLayer, Live] = {}

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each of the denoiser's layers that attend to text."""
        own = choose([layer for layer in layers if not layer.component], self.globs)
        self._handlers = {layer: Live(layer.name) for layer in own}
        return self._handlers

    def begin(self, sampling: Sampling) -> None:
        """Find the words' positions, and check that there is room for their maps.

        Raises:
            MemoryError: the maps would not fit.
            ValueError: a word is in none of the prompts.
        """
        self.sampling = sampling
        self.positions = kept_positions(sampling.asked.prompts, self.words)
        tokens = _index(self.positions, sampling.device)
        for handler in self._handlers.values():
            handler.tokens, handler.maps = tokens, None
        self.nbytes = sum(self._bytes_of(layer) for layer in self.chosen())
        advice = "; name fewer words= or layers=, or draw fewer images at a time"
        check_room_for("maps with gradients keep", self.nbytes, sampling.device, advice)

    @property
    def layers(self) -> Mapping[AttentionLayer, Live]:
        """The layers that attend to text, and the handler of each."""
        return self._handlers

    def chosen(self) -> list[AttentionLayer]:
        """Return the layers whose maps are kept; by default those of heat maps."""
        sampling, layers = self._run, list(self._handlers)
        if self.globs is not None:
            return layers
        if sampling.family.map_layers is not None:
            return choose(layers, sampling.family.map_layers)
        records = [Layer(each.name, sampling.grid(each), each.heads) for each in layers]
        fine = [
            layer
            for layer, record in zip(layers, records, strict=True)
            if daam_layers(record, sampling.latent)
        ]
        return fine or layers

    def _bytes_of(self, layer: AttentionLayer) -> int:
        height, width = self._run.grid(layer)
        numbers = (layer.heads + 1) * len(self.positions) + layer.heads
        return 4 * self._run.images * height * width * numbers

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the rows that follow the prompts."""
        if not call.component:
            self.aim(self.chosen(), call.conditional[0])

    def aim(self, layers: Sequence[AttentionLayer], rows: slice) -> None:
        """Forget the maps there are, and keep those of some layers and rows in the next call."""
        for layer, handler in self._handlers.items():
            handler.maps, handler.rows = None, (rows,)
            handler.live, handler.seen = layer in layers, False

    @property
    def _run(self) -> Sampling:
        if self.sampling is None:
            raise RuntimeError("there are no maps yet: call the denoiser inside the with block")
        return self.sampling

    @property
    def kept(self) -> list[AttentionLayer]:
        """The layers that have maps of the latest call.

        Raises:
            RuntimeError: there was no call yet.
        """
        found = [layer for layer, handler in self._handlers.items() if handler.maps is not None]
        if not found:
            raise RuntimeError("there are no maps yet: call the denoiser inside the with block")
        return found

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the images, one each."""
        asked = self._run.asked
        return tuple(asked.prompts[number] for number in asked.prompt_of)

    def native(self, layer: AttentionLayer) -> Tensor:
        """Return a layer's maps, (images, tokens, height, width) on its own grid.

        Raises:
            RuntimeError: the layer's queries do not match its grid.
        """
        maps, grid = self._handlers[layer].maps, self._run.grid(layer)
        assert maps is not None
        if maps.shape[-1] != grid[0] * grid[1]:
            raise RuntimeError(
                f"layer {layer.name} has {maps.shape[-1]} queries, but a grid of {grid} was "
                "expected; please report the model's configuration"
            )
        return maps.view(*maps.shape[:-1], *grid)

    def columns(self, word: Words, image: int) -> list[int]:
        """Return which of the kept tokens are a word's.

        Raises:
            WordError: the word is not in the image's prompt, or none of the words to keep.
        """
        found = self.prompts[image].positions(word)
        if not set(found) <= set(self.positions):
            raise WordError(f"word {word!r} is none of the words to keep: name it in words=")
        return [self.positions.index(place) for place in found]


class LiveMaps:
    """Heat maps of the latest denoiser call inside ``xattn.live``, with gradients.

    ``maps["car"]`` is the map of a word in each image, (images, height, width) on the latents'
    grid, in float32 or more: per layer the mean over heads, bicubic and clamped at 0, then the
    mean over layers and the word's tokens (Tang et al. 2023, section 3, of a single call).
    """

    def __init__(self, recorder: LiveRecorder) -> None:
        self._recorder = recorder

    def __getitem__(self, word: Words) -> Tensor:
        """Return the map of a word or phrase in each image, (images, height, width).

        Raises:
            RuntimeError: the denoiser was not called yet.
            WordError: the word is missing in an image's prompt, or none of the words to keep.
        """
        return torch.stack([self.of(word, i) for i in range(len(self._recorder.prompts))])

    def of(self, word: Words, image: int = 0) -> Tensor:
        """Return the map of a word in one image, (height, width) on the latents' grid.

        Raises:
            RuntimeError: the denoiser was not called yet.
            WordError: the word is not in the image's prompt, or none of the words to keep.
        """
        recorder = self._recorder
        kept, chosen = recorder.kept, recorder.columns(word, image)
        assert recorder.sampling is not None
        latent = recorder.sampling.latent
        sized = [to_grid(recorder.native(layer)[image, chosen], latent) for layer in kept]
        return torch.stack(sized).mean((0, 1))  # of (layers, tokens, height, width)

    def layers(self, word: Words, image: int = 0) -> dict[str, Tensor]:
        """Return the map of a word in each layer, (height, width) on the layer's own grid.

        Raises:
            RuntimeError: the denoiser was not called yet.
            WordError: the word is not in the image's prompt, or none of the words to keep.
        """
        recorder = self._recorder
        kept, chosen = recorder.kept, recorder.columns(word, image)
        return {layer.name: recorder.native(layer)[image, chosen].mean(0) for layer in kept}

    @property
    def images(self) -> int:
        """Number of images of the latest call."""
        return len(self._recorder.prompts)

    @property
    def nbytes(self) -> int:
        """Bytes kept for the way back from the latest call's maps; 0 before the first call."""
        return self._recorder.nbytes

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the first image's prompt that are kept."""
        kept = set(self._recorder.positions)
        found = self._recorder.prompts[0].words
        return tuple(word.text for word in found if kept.issuperset(word.positions))


def _index(positions: Sequence[int], device: torch.device) -> slice | Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return slice(first, last + 1)
    return torch.tensor(positions, device=device)
