"""Toyland: a small world whose truth is known, and three diffusion models trained on it.

:func:`scene` draws a picture with its caption and an exact mask for every word that has one;
:func:`demo` loads a bundled model, which draws such pictures from such captions.
"""

from .bundle import demo
from .scenes import Scene, Thing, Word, scene

__all__ = ["Scene", "Thing", "Word", "demo", "scene"]
