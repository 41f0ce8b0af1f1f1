"""Arrays at the door: finite vectors of one length, and cluster labels as integers."""

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]


def vector(name: str, values: ArrayLike, rows: int | None = None) -> Vector:
    """`values` as float64 [N]; a ValueError naming them if they are empty, not flat, not finite or not `rows` long."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty flat list of numbers; got shape {array.shape}")
    if rows is not None and len(array) != rows:
        raise ValueError(f"{name} must have one entry per row ({rows}); got {len(array)}")
    if not np.isfinite(array).all():
        position = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}[{position}] must be a finite number; got {array[position]}")
    return array


def shares(name: str, values: ArrayLike, rows: int | None = None) -> Vector:
    """Like `vector`, for numbers in [0, 1]: outcomes (ties 1/2) and probabilities."""
    array = vector(name, values, rows)
    outside = np.flatnonzero((array < 0) | (array > 1))
    if outside.size:
        raise ValueError(f"{name}[{outside[0]}] must lie in [0, 1]; got {array[outside[0]]}")
    return array


def cluster_codes(clusters: Iterable[Hashable] | None, rows: int) -> tuple[NDArray[np.int64], int]:
    """Cluster labels (any hashable, by default every row its own) as integers 0..G-1 of shape [N], and G."""
    if clusters is None:
        return np.arange(rows), rows
    seen: dict[Hashable, int] = {}
    codes = np.array([seen.setdefault(label, len(seen)) for label in clusters], dtype=np.int64)
    if len(codes) != rows:
        raise ValueError(f"clusters must have one label per row ({rows}); got {len(codes)}")
    return codes, len(seen)
