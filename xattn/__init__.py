"""See and steer what the words of a prompt do inside a text-to-image diffusion model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which cannot read the table below
    from xattn import batch as batch
    from xattn.api.edit import edit as edit
    from xattn.api.edit import sweep as sweep
    from xattn.api.editing import Session as Session
    from xattn.api.editing import editing as editing
    from xattn.api.invert import inversion_cost as inversion_cost
    from xattn.api.invert import invert as invert
    from xattn.api.live import live as live
    from xattn.api.live import supervised as supervised
    from xattn.api.probe import probe as probe
    from xattn.api.record import record as record
    from xattn.api.steer import initial_noise as initial_noise
    from xattn.api.steer import steer as steer
    from xattn.api.vectors import concept_vector as concept_vector
    from xattn.api.vital import vital as vital
    from xattn.attribution.attribute import attribute as attribute
    from xattn.attribution.attribute import attribution_cost as attribution_cost
    from xattn.attribution.dissect import dissect as dissect
    from xattn.attribution.importance import importance as importance
    from xattn.attribution.saliency import saliency as saliency
    from xattn.attribution.sanity import sanity as sanity
    from xattn.batch.index import open_runs as open_runs
    from xattn.edits.kinds import LocalBlend as LocalBlend
    from xattn.edits.kinds import Refine as Refine
    from xattn.edits.kinds import Replace as Replace
    from xattn.edits.kinds import Reweight as Reweight
    from xattn.edits.plan import EditPlan as EditPlan
    from xattn.guidance.apart import Apart as Apart
    from xattn.guidance.bind import Bind as Bind
    from xattn.guidance.place import Place as Place
    from xattn.guidance.present import Present as Present
    from xattn.guidance.steering import Steering as Steering
    from xattn.guidance.teaching import SupervisedMaps as SupervisedMaps
    from xattn.instruments.keeper import KeptSource as KeptSource
    from xattn.instruments.live import LiveMaps as LiveMaps
    from xattn.inversion.inversion import Inversion as Inversion
    from xattn.inversion.inversion import load_inversion as load_inversion
    from xattn.records.format import FileError as FileError
    from xattn.records.run import Layer as Layer
    from xattn.results.attribution import Attribution as Attribution
    from xattn.results.concepts import ConceptMaps as ConceptMaps
    from xattn.results.concepts import Segmentation as Segmentation
    from xattn.results.diagnosis import Background as Background
    from xattn.results.diagnosis import Displaced as Displaced
    from xattn.results.diagnosis import Finding as Finding
    from xattn.results.diagnosis import Leaked as Leaked
    from xattn.results.diagnosis import Merged as Merged
    from xattn.results.diagnosis import Neglected as Neglected
    from xattn.results.diagnosis import Thresholds as Thresholds
    from xattn.results.difference import Difference as Difference
    from xattn.results.dissection import Dissection as Dissection
    from xattn.results.edit import EditResult as EditResult
    from xattn.results.entropies import LayerEntropies as LayerEntropies
    from xattn.results.evolution import Evolution as Evolution
    from xattn.results.faithfulness import Faithfulness as Faithfulness
    from xattn.results.heatmap import HeatMap as HeatMap
    from xattn.results.image_prompt import ImagePromptMaps as ImagePromptMaps
    from xattn.results.places import WordsAt as WordsAt
    from xattn.results.presence import Presence as Presence
    from xattn.results.presence import Verdict as Verdict
    from xattn.results.sanity import Sanity as Sanity
    from xattn.results.trace import Trace as Trace
    from xattn.results.trace import load as load
    from xattn.results.vectors import ConceptVector as ConceptVector
    from xattn.results.vectors import Similarity as Similarity
    from xattn.results.vitality import Vitality as Vitality
    from xattn.session.loop import Loop as Loop
    from xattn.text.prompt import WordError as WordError
    from xattn.toyland import demo as demo

__version__ = "0.2.0"

# Imported on first use: `import xattn` stays light.
_HOMES = {
    name: module
    for module, names in {
        "api.edit": "edit sweep",
        "api.editing": "Session editing",
        "api.invert": "inversion_cost invert",
        "api.live": "live supervised",
        "api.probe": "probe",
        "api.record": "record",
        "api.steer": "initial_noise steer",
        "api.vectors": "concept_vector",
        "api.vital": "vital",
        "attribution.attribute": "attribute attribution_cost",
        "attribution.dissect": "dissect",
        "attribution.importance": "importance",
        "attribution.saliency": "saliency",
        "attribution.sanity": "sanity",
        "batch": "batch",
        "batch.index": "open_runs",
        "edits.kinds": "LocalBlend Refine Replace Reweight",
        "edits.plan": "EditPlan",
        "guidance.apart": "Apart",
        "guidance.bind": "Bind",
        "guidance.place": "Place",
        "guidance.present": "Present",
        "guidance.steering": "Steering",
        "guidance.teaching": "SupervisedMaps",
        "instruments.keeper": "KeptSource",
        "instruments.live": "LiveMaps",
        "inversion.inversion": "Inversion load_inversion",
        "records.format": "FileError",
        "records.run": "Layer",
        "results.attribution": "Attribution",
        "results.concepts": "ConceptMaps Segmentation",
        "results.difference": "Difference",
        "results.diagnosis": "Background Displaced Finding Leaked Merged Neglected Thresholds",
        "results.dissection": "Dissection",
        "results.edit": "EditResult",
        "results.entropies": "LayerEntropies",
        "results.evolution": "Evolution",
        "results.faithfulness": "Faithfulness",
        "results.heatmap": "HeatMap",
        "results.image_prompt": "ImagePromptMaps",
        "results.places": "WordsAt",
        "results.presence": "Presence Verdict",
        "results.sanity": "Sanity",
        "results.trace": "Trace load",
        "results.vectors": "ConceptVector Similarity",
        "results.vitality": "Vitality",
        "session.loop": "Loop",
        "text.prompt": "WordError",
        "toyland": "demo",
    }.items()
    for name in names.split()
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xattn' has no attribute {name!r}")
    home = import_module(f"xattn.{_HOMES[name]}")
    value = home if name == _HOMES[name] else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
