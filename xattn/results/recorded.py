"""The runs that were recorded, and the maps that can be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from xattn.maps import daam, refine, select
from xattn.maps.select import Asked, Heads, Steps
from xattn.records.run import LayerFilter, Run
from xattn.results.evolution import Evolution, evolution
from xattn.results.heatmap import HeatMap


@dataclass(repr=False)
class Recorded:
    """What was recorded, and its maps: the part of a ``Trace`` that draws and writes nothing.

    Attributes:
        runs: what each call left, the latest last.
    """

    runs: list[Run] = field(default_factory=list)

    # -- what it is of

    @property
    def run(self) -> Run:
        """The latest run.

        Raises:
            ValueError: there is none yet.
        """
        if not self.runs:
            raise ValueError("nothing recorded yet: call the pipeline inside the with block")
        return self.runs[-1]

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the first prompt that were kept."""
        return select.kept_words(self.run)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts as text."""
        return tuple(prompt.text for prompt in self.run.prompts)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The schedule's timestep of each step."""
        return self.run.timesteps

    @property
    def nbytes(self) -> int:
        """The bytes that the maps of all runs take."""
        return sum(run.nbytes for run in self.runs)

    # -- maps

    def heatmap(
        self,
        word: Asked,
        image: int = 0,
        *,
        steps: Steps = None,
        layers: LayerFilter = None,
        heads: Heads = None,
        occurrence: int | None = None,
        refined: bool = False,
    ) -> HeatMap:
        """Return where a word acts (Tang et al. 2023, section 3), on the latent grid.

        Args:
            word: a word or a phrase of the image's prompt, or token positions.
            image: index of the image, in the order of ``pipe(...).images``.
            steps: an index, a slice or several indices; summed. All by default.
            layers: names, globs, a test of a ``Layer``, "all", or "daam" for the paper's own,
                which are the default too.
            heads: an index or several; averaged. Or heads of some layers by the layers' names, as
                a ``Dissection`` has them: a layer counts by its share of them. All by default.
            occurrence: which of a word that comes several times, from 0; all by default.
            refined: lets the map flow once along the image's attention to itself, so that it
                fills what looks alike: truer as a mask. Needs ``record(..., affinity=True)``.

        Raises:
            ValueError: something was asked for that is not in the recording.
        """
        run, index = self.run, self._index(image)
        positions = select.word_positions(run, word, index, occurrence)
        tokens = daam.token_maps(run, positions, index, steps=steps, layers=layers, heads=heads)
        if refined:
            tokens = refine.refined(run, tokens, index)
        used = select.step_indices(run, steps) if "step" in run.keep else range(run.done)
        return self._heat(tokens, word, index, positions, steps=list(used))

    def steps(
        self,
        word: Asked,
        image: int = 0,
        *,
        layers: LayerFilter = None,
        heads: Heads = None,
        occurrence: int | None = None,
    ) -> list[HeatMap]:
        """Return the heat map of each step that is complete."""
        run, index = self.run, self._index(image)
        positions = select.word_positions(run, word, index, occurrence)
        stack = daam.step_token_maps(run, positions, index, layers=layers, heads=heads)
        return [
            self._heat(tokens, word, index, positions, steps=[step])
            for step, tokens in enumerate(stack)
        ]

    def frames(
        self,
        word: Asked,
        video: int = 0,
        *,
        steps: Steps = None,
        layers: LayerFilter = None,
        heads: Heads = None,
        occurrence: int | None = None,
    ) -> list[HeatMap]:
        """Return the heat map of each frame of a video; of an image, the only one.

        Each frame is an image of the run, those of the first video in front: frame 2 alone is
        ``heatmap(word, 2)``. ``np.stack`` makes them (frames, height, width). The frames are those
        of the latents: each stands for several of the video's, the picture that it has is the last
        of them.

        Args:
            word: as for ``heatmap``.
            video: index of the video, in the order of ``pipe(...).frames``.
            steps: as for ``heatmap``.
            layers: as for ``heatmap``.
            heads: as for ``heatmap``.
            occurrence: as for ``heatmap``.

        Raises:
            ValueError: something was asked for that is not in the recording.
        """
        how: dict[str, Any] = {"steps": steps, "layers": layers, "heads": heads}
        how["occurrence"] = occurrence
        return [self.heatmap(word, n, **how) for n in select.frames_of(self.run, video)]

    def layers(
        self,
        word: Asked,
        image: int = 0,
        *,
        steps: Steps = None,
        layers: LayerFilter = "all",
        heads: Heads = None,
        occurrence: int | None = None,
    ) -> dict[str, HeatMap]:
        """Return the heat map of each layer alone, by its name, on the latent grid."""
        run, index = self.run, self._index(image)
        positions = select.word_positions(run, word, index, occurrence)
        heats = {}
        for n in select.layers_of(run, layers)[0]:
            native = daam.layer_maps(run, n, positions, index, steps=steps, heads=heads)
            tokens, name = daam.to_grid(native, run.latent), run.layers[n].name
            heats[name] = self._heat(tokens, word, index, positions, layer=name)
        return heats

    def evolution(
        self,
        word: Asked,
        image: int = 0,
        *,
        layers: LayerFilter = "all",
        occurrence: int | None = None,
    ) -> Evolution:
        """Return the entropy of a word's map in each layer at each step."""
        run, index = self.run, self._index(image)
        return evolution(run, word, index, layers=layers, occurrence=occurrence)

    # -- helpers

    def _index(self, image: int) -> int:
        """Return the index of an image, from 0."""
        return select.image_index(self.run, image)

    def _picture(self, index: int) -> Image.Image | None:
        """Return the picture that was recorded with an image, if any."""
        pictures = self.run.images
        return pictures[index] if index < len(pictures) else None

    def _heat(
        self, tokens: Any, word: Asked, index: int, positions: Sequence[int], **meta: Any
    ) -> HeatMap:
        """Return the mean over a word's tokens, (tokens, height, width), as a heat map."""
        about = {
            "prompt": self.run.prompt(index).text,
            "image": index,
            "positions": list(positions),
            **meta,
        }
        return HeatMap(tokens.mean(0).numpy(), str(word), about, self._picture(index))
