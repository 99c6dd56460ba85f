"""Measures of a heat map: where it is, how much, how focused, and how well it fits a mask.

Pure functions of a map (height, width) that is nowhere negative, and of masks of the same shape.
``MEASURES`` lists those that need a map alone; ``HeatMap.measure``, the index of a batch and the
command line's ``--json`` all read it, so a new measure is a function here and a row there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = float | tuple[float, float]
Map = Any  # what np.asarray makes a (height, width) array of: arrays, CPU tensors, heat maps


def mean(heat: Map) -> float:
    """Return the mean over the grid."""
    return float(_array(heat).mean())


def maximum(heat: Map) -> float:
    """Return the highest value."""
    return float(_array(heat).max())


def minimum(heat: Map) -> float:
    """Return the lowest value."""
    return float(_array(heat).min())


def area(heat: Map, threshold: float) -> float:
    """Return the share of the grid where the map reaches a share of its maximum, in [0, 1]."""
    return float(threshold_mask(heat, threshold).mean())


def std(heat: Map) -> float:
    """Return the standard deviation over the grid (of the population)."""
    return float(_array(heat).std())


def focus_area(heat: Map, share: float = 0.5) -> float:
    """Return the smallest share of the grid, in (0, 1], that holds a share of the mass.

    1/area for a single bright cell, ``share`` (rounded up to whole cells) for a uniform map.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    values = np.sort(_array(heat).ravel())[::-1]
    mass = values.cumsum()
    if mass[-1] == 0:
        return 1.0
    cells = int(np.searchsorted(mass, share * mass[-1] * (1 - 1e-9))) + 1
    return min(cells, values.size) / values.size


def centre(heat: Map) -> tuple[float, float]:
    """Return the centre of mass (row, column), each in [0, 1] from the top left corner."""
    values = _array(heat)
    height, width = values.shape
    mass = values.sum()
    if mass == 0:
        return 0.5, 0.5
    rows, columns = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    return float(values.sum(1) @ rows / mass), float(values.sum(0) @ columns / mass)


def focus(heat: Map) -> float:
    """Return 1 less the focus area: near 1 for a point, 0.5 for an even map."""
    return 1 - focus_area(heat)


def peak(heat: Map) -> tuple[float, float]:
    """Return the middle of the highest cell (row, column), each in [0, 1] from the top left.

    The first such cell, row by row, where several are equally high.
    """
    values = _array(heat)
    row, column = divmod(int(values.argmax()), values.shape[1])
    return (row + 0.5) / values.shape[0], (column + 0.5) / values.shape[1]


def entropy(heat: Map, *, normalized: bool = True) -> float:
    """Return the entropy of the map as a distribution over the grid.

    In [0, 1], relative to a uniform map, or in nats if ``normalized`` is false. An all-zero map
    counts as uniform.
    """
    values = _array(heat).ravel()
    most = float(np.log(values.size))
    total = values.sum()
    if total == 0:
        return 1.0 if normalized else most
    p = values[values > 0] / total
    nats = max(0.0, float(-(p * np.log(p)).sum()))
    return nats if not normalized else (min(1.0, nats / most) if most else 0.0)


NUMBERS: Mapping[str, Callable[[Map], float]] = {
    "mean": mean,
    "maximum": maximum,
    "std": std,
    "focus_area": focus_area,
    "focus": focus,
    "entropy": entropy,
}
"""Measures that are a number and need no mask, by the name that they have everywhere."""

PLACES: Mapping[str, Callable[[Map], tuple[float, float]]] = {"centre": centre, "peak": peak}
"""Measures that are a place (row, column), each in [0, 1] from the top left corner."""

MEASURES: Mapping[str, Callable[[Map], Value]] = {**NUMBERS, **PLACES}
"""Every measure that needs no mask; the names are those of stored files, too."""


def measured(heat: Map) -> dict[str, Value]:
    """Return each measure of a map, by name: a number, or a place (row, column) in [0, 1]."""
    return {name: measure(heat) for name, measure in MEASURES.items()}


def threshold_mask(heat: Map, threshold: float) -> NDArray[np.bool_]:
    """Return where the map reaches a share of its maximum: (height, width) bool.

    0 selects everything, 1 only the peak; an all-zero map returns an empty mask.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a share of the maximum, in [0, 1], got {threshold}")
    values = _array(heat)
    most = float(values.max())
    return np.greater_equal(values, threshold * most) & (most > 0)


def iou(heat: Map, mask: Map, threshold: float = 0.4) -> float:
    """Return the intersection over union of a mask and the map above a threshold."""
    wanted = _mask(mask, _array(heat))
    found = threshold_mask(heat, threshold)
    union = int((found | wanted).sum())
    return int((found & wanted).sum()) / union if union else 0.0


def best_iou(heat: Map, mask: Map) -> tuple[float, float]:
    """Return the highest IoU that any threshold reaches, and that threshold."""
    values = _array(heat)
    wanted = _mask(mask, values).ravel()
    flat = values.ravel()
    most = float(flat.max())
    if most == 0:
        return 0.0, 1.0
    order = np.argsort(-flat, kind="stable")
    hits = wanted[order].cumsum()
    counts = np.arange(1, flat.size + 1)
    ious = hits / (counts + wanted.sum() - hits)
    last = np.append(np.diff(flat[order]) != 0, True)  # equal values enter together
    best = int(np.where(last, ious, -1.0).argmax())
    return float(ious[best]), float(flat[order][best] / most)


def pointing(heat: Map, mask: Map) -> bool:
    """Return whether the peak lies inside the mask (the pointing game)."""
    values = _array(heat)
    return bool(_mask(mask, values).ravel()[values.argmax()])


def _array(heat: Map) -> NDArray[np.float64]:
    values = np.asarray(heat, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected a map (height, width), got the shape {values.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("a map must be finite and not negative anywhere")
    return values


def _mask(mask: Map, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    wanted = np.asarray(mask)
    if wanted.shape != values.shape:
        raise ValueError(f"the mask is {wanted.shape}, the map {values.shape}: resize one of them")
    return wanted.astype(bool)
