"""Which cells are meant by an index, a range or a draw; columns of some cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, as_integer, shown

if TYPE_CHECKING:
    from collections.abc import Sequence


def first_by_key(keys: np.ndarray, n: int) -> np.ndarray:
    """Return the places, ascending, of the ``n`` keys first by (key, place): all, if there are no more."""
    if keys.size <= n:
        return np.arange(keys.size)
    last = np.partition(keys, n - 1)[n - 1]
    below = np.flatnonzero(keys < last)
    ties = np.flatnonzero(keys == last)[: n - below.size]
    return np.sort(np.concatenate([below, ties]))


def rows_of(index: Any, n: int) -> int | np.ndarray:
    """Return what an index into ``n`` cells means: one cell, or (k,) int64 of cells; each in [0, n).

    Integers, slices, lists, tuples, ranges, arrays and tensors of integers, and of n booleans; below 0 from the end.
    """
    if isinstance(index, slice):
        return np.arange(n)[index]
    if (cell := as_integer(index)) is not None:
        if not -n <= cell < n:
            raise IndexError(f"cell index must be in [{-n}, {n}); got {shown(index)}")
        return cell % n
    rows = None if isinstance(index, str | bytes | Mapping) else _as_array(index)
    if rows is not None and rows.shape == (n,) and rows.dtype == bool:
        return np.flatnonzero(rows)
    if rows is None or rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise InputError(
            "cells are chosen by an integer, a slice, or a list or one-dimensional array of integers; got "
            f"{shown(index)}"
        )
    outside = np.flatnonzero((rows < -n) | (rows >= n))
    if outside.size:
        raise IndexError(f"cell index must be in [{-n}, {n}); got {rows[outside[0]]}")
    rows = rows.astype(np.int64)
    return np.where(rows < 0, rows + n, rows)


def _as_array(index: Any) -> np.ndarray | None:
    try:
        return np.asarray(index)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors of a device
        return None


def rows_between(rows: Sequence[int] | np.ndarray, begin: int, end: int) -> np.ndarray:
    """Return ``rows[begin:end]`` as an array; NumPy would look at each number of a range."""
    part = rows[begin:end]
    return np.arange(part.start, part.stop, part.step) if isinstance(part, range) else np.asarray(part)


def obs_of(obs: Mapping[str, np.ndarray], rows: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the obs of some cells; columns that are read when asked for stay so."""
    if hasattr(obs, "take"):
        return obs.take(rows)
    return {name: np.asarray(column)[rows] for name, column in obs.items()}
