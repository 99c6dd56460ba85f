"""``concept_vector(pipe, "yellow")``: the direction of a concept, from the text encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xattn.api.concepts import concept_names, encoded_concepts
from xattn.instruments.concepts import Concept
from xattn.models import family_of_pipeline
from xattn.models.family import AttentionLayer
from xattn.results.vectors import ConceptVector


@torch.no_grad()
def concept_vector(pipe: Any, text: str) -> ConceptVector:
    """Return the direction of a word or phrase among the outputs of cross-attention layers.

    The pipeline's text encoder reads the text alone; in each layer its words' values, less those
    of the empty text, are the direction in which the text would move a place that attends to it.

    Args:
        pipe: a pipeline whose image attends to the text in layers of its own, as UNets' does.
        text: a word or phrase.

    Raises:
        TypeError: the model has no such layers; see ``also=`` of ``record``.
        ValueError: the text has no word, or the layers read texts of another width.

    Example:
        >>> yellow = xattn.concept_vector(pipe, "yellow")
        >>> trace = xattn.probe(pipe, photo, "a yellow car", outputs=True)
        >>> trace.similarity(yellow).overlay().save("yellow.png")
    """
    family = family_of_pipeline(pipe)
    layers = [layer for layer in family.layers(family.denoisers(pipe)[0]) if layer.role == "cross"]
    if not layers:
        raise TypeError(
            f"{type(pipe).__name__} has no layers of cross-attention: where text and image attend "
            "in one call, ask for concepts by also=, in the form 'output'"
        )
    (concept, background) = encoded_concepts(pipe, concept_names(text))
    return ConceptVector(
        concept.name, {layer.name: _direction(layer, concept, background) for layer in layers}
    )


def _direction(layer: AttentionLayer, concept: Concept, background: Concept) -> Tensor:
    difference = _value(layer, concept) - _value(layer, background)
    length: Tensor = difference.norm().clamp_min(1e-12)
    return difference / length


def _value(layer: AttentionLayer, concept: Concept) -> Tensor:
    """Return the mean value of a concept's tokens, (heads x channels).

    Raises:
        ValueError: the layer reads texts of another width.
    """
    module: Any = layer.module
    states = concept.states[list(concept.positions)]
    if module.to_v.in_features != states.shape[-1]:
        raise ValueError(
            f"layer {layer.name} reads texts of {module.to_v.in_features} channels, the text "
            f"encoder's have {states.shape[-1]}: this model projects them first"
        )
    if getattr(module, "norm_cross", None):
        states = module.norm_encoder_hidden_states(states)
    value: Tensor = module.to_v(states.to(next(module.parameters()).dtype)).mean(0)
    return value.float().cpu()
