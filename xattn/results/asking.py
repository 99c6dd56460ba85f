"""Questions to a trace about places and words together: at, compare, competing, entropies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from xattn.maps import competition, directions, select
from xattn.maps.select import Asked, Heads, Steps
from xattn.records.run import LayerFilter
from xattn.results import diagnosis, presence, vectors
from xattn.results.concepts import ConceptMaps, concept_maps
from xattn.results.difference import Difference, difference
from xattn.results.entropies import LayerEntropies
from xattn.results.heatmap import HeatMap
from xattn.results.image_prompt import ImagePromptMaps, image_prompt_maps
from xattn.results.places import By, WordsAt, word_rows, words_at, words_at_each
from xattn.results.presence import Presence, Verdict
from xattn.results.recorded import Recorded
from xattn.text.prompt import Word

if TYPE_CHECKING:
    from xattn.results.trace import Trace


class Asking(Recorded):
    """Methods of a trace about several words at once, or about several runs."""

    def at(
        self,
        place: tuple[float, float],
        image: int = 0,
        *,
        steps: Steps = None,
        layers: LayerFilter = None,
        heads: Heads = None,
    ) -> WordsAt:
        """Return the words that act at a place, the strongest first.

        Args:
            place: (x, y), each in [0, 1] from the top left corner.
            image: index of the image.
            steps: as for ``heatmap``.
            layers: as for ``heatmap``.
            heads: as for ``heatmap``.

        Raises:
            ValueError: the place is not on the picture, or a selection is not in the recording.

        Example:
            >>> for word, share in trace.at((0.5, 0.6)):
            ...     print(word, share)
        """
        return words_at(self.run, place, image, steps=steps, layers=layers, heads=heads)

    def at_each(
        self, place: tuple[float, float], by: By, image: int = 0, *, layers: LayerFilter = None
    ) -> dict[str, WordsAt]:
        """Return the words at a place in each "step", each "layer", or each "head" of a layer.

        Raises:
            ValueError: ``by`` is none of these, or its axis was not kept.
        """
        return words_at_each(self.run, place, image, by, layers)

    def diagnose(
        self,
        image: int = 0,
        *,
        pairs: diagnosis.Pairs | None = None,
        thresholds: diagnosis.Thresholds | None = None,
        layers: LayerFilter = None,
    ) -> list[diagnosis.Finding]:
        """Return what seems wrong in an image by its maps, the most certain first.

        Nouns that are neglected, merged, displaced or all over the image, and adjectives that leak
        onto another noun; each with its score, its map and, as text, what to try.

        Args:
            image: index of the image.
            pairs: (adjective, noun), in place of those found by a small rule for English; a
                finding's ``sure`` says where that rule went by the order of words alone.
            thresholds: the score at which each kind of finding begins.
            layers: the layers of the maps: names, globs or a predicate; by default those of the
                decoder, where the model has one, whose maps say the most.

        Raises:
            ValueError: a word of a pair is not in the prompt.

        Example:
            >>> for finding in trace.diagnose():
            ...     print(finding)
        """
        index = select.image_index(self.run, image)
        prompt, maps = self.run.prompt(index), self.word_maps(index, layers)
        return diagnosis.diagnose(prompt, maps, pairs, thresholds)

    def word_maps(self, image: int, layers: LayerFilter = None) -> dict[Word, HeatMap]:
        """Return the map of each of an image's words, by the decoder's layers unless told."""
        if layers is None and any(map(diagnosis.in_decoder, self.run.layers)):
            layers = diagnosis.in_decoder
        prompt, kept = self.run.prompt(image), set(self.run.positions)
        whole = [word for word in prompt.words if kept.issuperset(word.positions)]
        return {word: self.heatmap(word.positions, image, layers=layers) for word in whole}

    def compare(
        self,
        other: Trace,
        word: Asked,
        image: int = 0,
        *,
        other_word: Asked | None = None,
        other_image: int | None = None,
        steps: Steps = None,
        layers: LayerFilter = None,
        heads: Heads = None,
        refined: bool = False,
    ) -> Difference:
        """Return what a word's attention gained over another run, per step.

        Compare another seed, model, adapter or edit; or a run with itself at other images.

        Args:
            other: the trace to subtract.
            word: the word of this run.
            image: index of this run's image.
            other_word: the word of the other run; the same by default.
            other_image: index of the other run's image; the same by default.
            steps: as for ``heatmap``, of both runs.
            layers: as for ``heatmap``, of both runs.
            heads: as for ``heatmap``, of both runs.
            refined: as for ``heatmap``, of both runs.

        Raises:
            ValueError: a word or a selection is not in one of the recordings.
        """
        where: dict[str, Any] = {"steps": steps, "layers": layers, "heads": heads}
        where["refined"] = refined
        mine = self.heatmap(word, image, **where)
        wanted = word if other_word is None else other_word
        theirs = other.heatmap(wanted, image if other_image is None else other_image, **where)
        counts = tuple(
            len(select.step_indices(run, steps)) if "step" in run.keep else run.done
            for run in (self.run, other.run)
        )
        return difference(mine, theirs, (counts[0], counts[1]))

    def competing(
        self,
        words: Sequence[Asked] | None = None,
        image: int = 0,
        *,
        temperature: float = 1.0,
        **where: Any,
    ) -> dict[str, HeatMap]:
        """Return each word's share of every place, in competition with the others.

        A softmax over words of the maps' logarithms over a temperature: at 1 a map divided by the
        sum of all, below 1 the strongest takes more.

        Args:
            words: the words; every one that was kept by default.
            image: index of the image.
            temperature: above 0.
            **where: as for ``heatmap``.

        Raises:
            ValueError: fewer than two words, or the temperature is not above 0.
        """
        chosen = list(select.kept_words(self.run, image) if words is None else words)
        if len(chosen) < 2:
            raise ValueError(f"words={words!r}: two words or more can compete")
        heats = [self.heatmap(word, image, **where) for word in chosen]
        stack = torch.stack([torch.tensor(heat.array) for heat in heats])
        shares = competition.competing(stack, temperature).numpy()
        return {
            str(word): HeatMap(share, str(word), heat.meta, heat.picture)
            for word, share, heat in zip(chosen, shares, heats, strict=True)
        }

    def concepts(
        self,
        names: str | Sequence[str] | None = None,
        image: int = 0,
        *,
        form: str | None = None,
        steps: Steps = None,
        layers: LayerFilter = None,
        refined: bool = False,
    ) -> ConceptMaps:
        """Return maps of concepts that were asked for beside the prompt, by ``also=``.

        Forms: "attention" is what the concept's own text would be given by the image's queries
        (naive: Marcos-Manchon et al. 2024; in joint attention among the concepts and the image);
        "competition" multiplies it, in each head, by the concept's share among all concepts
        asked; "output" is the softmax over these concepts of the products of the image's output
        vectors with theirs (Helbling et al. 2025, section 4); "evidence", after a probe with
        ``presence=True``, raises competition's or output's map, up to twice, by how far each
        concept alone brings the denoiser's estimate nearer to the picture there (the denoising
        error of Li et al. 2023, cell by cell). By default evidence where there is any, else
        competition in cross-attention, output in joint attention.

        Args:
            names: which concepts, "background" for the empty text; all but that by default.
            image: index of the image.
            form: one of those that the recording has.
            steps: as for ``heatmap``.
            layers: as for ``heatmap``.
            refined: as for ``heatmap``.

        Raises:
            ValueError: no concepts were asked for, or not these.

        Example:
            >>> trace = xattn.probe(pipe, photo, "", also=["car", "lawn"])
            >>> trace.concepts()["car"].overlay().save("car.png")
        """
        wanted = [names] if isinstance(names, str) else None if names is None else list(names)
        index = select.image_index(self.run, image)
        return concept_maps(
            self.run, wanted, index, form=form, steps=steps, layers=layers, refined=refined
        )

    def image_prompt(
        self,
        image: int = 0,
        *,
        steps: Steps = None,
        layers: LayerFilter = None,
        heads: Heads = None,
    ) -> ImagePromptMaps:
        """Return what text and image prompt give to each place, with an IP-Adapter.

        The image prompt has a softmax of its own, so its probabilities can't be held against the
        text's. What is compared is the size of what each adds to a layer's output: its norm, in
        each head, over the sum of all norms (after Kobayashi et al. 2020). Scales and regions
        count; a layer at scale 0 takes nothing of the image. Needs ``record(words="image")``.

        Args:
            image: index of the image.
            steps: as for ``heatmap``.
            layers: as for ``heatmap``.
            heads: as for ``heatmap``.

        Raises:
            ValueError: no image prompt was recorded.

        Example:
            >>> with xattn.record(pipe, words="image") as trace:
            ...     pipe("a red car", ip_adapter_image=photo)
            >>> trace.image_prompt().shares
        """
        index = select.image_index(self.run, image)
        return image_prompt_maps(self.run, index, steps=steps, layers=layers, heads=heads)

    def presence(self, word: str, image: int = 0) -> Presence:
        """Return how likely a word is in the picture at all, in [0, 1].

        By how much the word helps the denoiser on the noised picture, beside the other words that
        were asked. For the bundled models it is a probability, fitted on scenes of their training;
        for another model a score, and its text says so. Needs ``probe(..., presence=True)``.

        Args:
            word: a word of the prompt, or one of ``also``.
            image: index of the image.

        Raises:
            ValueError: presence was not asked for, or not of this word.

        Example:
            >>> trace = xattn.probe(pipe, photo, "", also=["car", "boat"], presence=True)
            >>> trace.presence("boat")
        """
        return presence.presence_of(self.run, word, image)

    def verdict(self, image: int = 0) -> Verdict:
        """Return whether the prompt fits the picture: match, partly, mismatch.

        With the presence of each of its words, the most present first. Needs
        ``probe(..., presence=True)``.

        Raises:
            ValueError: presence was not asked for, or the prompt has no word.
        """
        return presence.verdict_of(self.run, image)

    def similarity(
        self, vector: vectors.ConceptVector, image: int = 0, *, layers: LayerFilter = None
    ) -> vectors.Similarity:
        """Return how far each place's output goes in a concept's direction, in [-1, 1].

        The cosine of what the text gave to the place, less the mean over the picture, with the
        concept's values; the mean over layers. Needs ``outputs=True``.

        Args:
            vector: of ``xattn.concept_vector`` with the same pipeline.
            image: index of the image.
            layers: as for ``heatmap``.

        Raises:
            ValueError: no outputs were kept, or the vector is another model's.

        Example:
            >>> trace.similarity(xattn.concept_vector(pipe, "yellow")).overlay().save("yellow.png")
        """
        return vectors.similarity(self.run, vector, image, layers)

    def explained(
        self, vector: vectors.ConceptVector, image: int = 0, *, layers: LayerFilter = "all"
    ) -> dict[str, float]:
        """Return the share of the outputs' variance over places along a concept's direction.

        By layer, in [0, 1]. Needs ``outputs=True``.
        """
        index = select.image_index(self.run, image)
        return directions.explained(self.run, vector.directions, index, layers)

    def represented(
        self,
        place: tuple[float, float],
        concepts: Sequence[vectors.ConceptVector],
        image: int = 0,
        *,
        layers: LayerFilter = None,
    ) -> list[tuple[str, float]]:
        """Return (concept, cosine) at a place, what it represents most first.

        Args:
            place: (x, y), each in [0, 1] from the top left corner.
            concepts: vectors of the recorded pipeline.
            image: index of the image.
            layers: as for ``heatmap``.
        """
        return vectors.represented(self.run, place, concepts, image, layers)

    def layer_entropies(self, image: int = 0, *, layers: LayerFilter = "all") -> LayerEntropies:
        """Return how undecided each layer is between the words, the most decided first.

        Each place's entropy over the words, averaged over the grid, in [0, 1].
        """
        rows = word_rows(self.run, image)
        words = [tuple(self.run.positions[row] for row in each) for _, each in rows]
        found = competition.layer_entropies(self.run, words, image, layers=layers)
        return LayerEntropies(tuple(found.items()), tuple(text for text, _ in rows))
