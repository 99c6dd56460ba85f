"""Maps of single heads, for dissection."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xattn.maps import daam, select
from xattn.records.run import LayerFilter, Run
from xattn.results.dissection import Head as Head


def head_maps(run: Run, word: str, layers: LayerFilter) -> dict[Head, NDArray[np.float32]]:
    """Return each head's map of a word on the latent grid, clamped at 0."""
    positions = select.word_positions(run, word)
    found = {}
    for n in select.layers_of(run, layers)[0]:
        maps = daam.to_grid(daam.head_maps(run, n, positions).mean(1), run.latent)
        for head, each in enumerate(maps):
            found[Head(run.layers[n].name, head)] = each.numpy()
    return found
