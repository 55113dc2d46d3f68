"""Cells as they are stored: parts of buffers, with what was found of genes that stand twice in a cell."""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary


@dataclass(frozen=True)
class Segment:
    """Cells that lie together: ``tokens[offsets[i]:offsets[i + 1]]`` is the segment's cell i, as stored.

    The value of ``tokens[k]`` is ``values[k + shift]`` (float32), where there are values.
    """

    offsets: np.ndarray
    tokens: np.ndarray
    values: np.ndarray | None = None
    shift: int = 0

    def between(self, begin: int, end: int) -> Segment:
        """Return the cells ``begin`` … ``end`` - 1."""
        return replace(self, offsets=self.offsets[begin : end + 1])


class Repeats:
    """What a corpus and its parts found of genes that stand twice in a cell.

    What is known of each stored cell lies in memory that forked workers share: a cell is looked through once.
    """

    def __init__(self, n_stored: int, before: Repeats | None = None) -> None:
        flags = np.frombuffer(mmap.mmap(-1, n_stored + 1), np.uint8)
        self.known, self.warned = flags[:-1], flags[-1:]  # known: what kernels/ragged.py found out about each cell
        if before is not None:  # of the same stream: it warns once
            self.warned = before.warned
        self.dropped: list[tuple[int, int, int]] = []  # (genes, first cell and token) of a call

    def warn(self, vocabulary: Vocabulary) -> None:
        """Warn, once, if genes stood twice in cells that were read so far."""
        if not self.dropped or self.warned[0]:
            return
        self.warned[0] = 1
        n, (_, cell, token) = sum(number for number, *_ in self.dropped), min(self.dropped, key=lambda one: one[1])
        what = "1 gene stood twice in its cell:" if n == 1 else f"{n} genes stood twice in a cell, as"
        first = f"gene {vocabulary.name_of(token)} (token {token}) in cell {cell}"
        warnings.warn(
            f"of the cells read so far, {what} {first}; the first occurrence counts, the others are dropped",
            UserWarning,
            stacklevel=4,
        )


def check_arrays(indptr: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous int64 offsets and integer tokens, consistent with each other."""
    indptr, tokens = np.asarray(indptr), np.asarray(tokens)
    for name, array in (("indptr", indptr), ("tokens", tokens)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{name} must be a one-dimensional integer array; got {array.ndim}-d {array.dtype}")
    if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != tokens.size or np.any(np.diff(indptr.astype(np.int64)) < 0):
        raise InputError(
            f"indptr must rise from 0 to the number of tokens ({tokens.size}); "
            f"it has {indptr.size} entries, from {indptr[:1]} to {indptr[-1:]}"
        )
    return np.ascontiguousarray(indptr, np.int64), np.ascontiguousarray(tokens, tokens.dtype.newbyteorder("="))


def check_values(values: Any, n_tokens: int) -> np.ndarray:
    """Return values as contiguous float32, one a token."""
    values = np.asarray(values)
    if values.shape != (n_tokens,) or (values.dtype.kind not in "iufb" and n_tokens):
        raise InputError(
            f"values must be one number for each of {n_tokens} tokens; got {values.dtype} of shape {values.shape}"
        )
    return float32_of(values, "values")


def float32_of(values: np.ndarray, what: str) -> np.ndarray:
    """Return numbers as contiguous float32, rounded; InputError names one that is beyond its range."""
    if values.dtype.kind not in "iufb" and values.size:
        raise InputError(f"{what} must be numbers; got {values.dtype}")
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(values, np.float32)
    except FloatingPointError as error:
        beyond = values[np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max)]
        raise InputError(f"{what} must be numbers that float32 holds; got {beyond[0]}") from error
