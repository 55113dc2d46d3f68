"""What the stages of a build exchange, and what a backend has to give (:class:`Stages`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corrmask_fast.cells.corpus import Corpus

RHO_RANGE = (-1 - 1e-9, 1 + 1e-9)  # rounding may pass 1 by a bit


class Cells(NamedTuple):
    """The cells that a graph is built from."""

    corpus: Corpus
    rows: Sequence[int] | np.ndarray  # indices of the sampled cells, ascending
    max_length: int  # genes read of each


class Sample(NamedTuple):
    """The sampled cells as they were read, chunk by chunk, and what was counted in them."""

    max_length: int
    chunks: list[tuple[np.ndarray, np.ndarray]]  # (indptr, tokens)
    presence: np.ndarray  # (chunks, V) int64: cells of a chunk in which a gene is present
    value_sum: np.ndarray  # (V,) int64: sum of X over all cells


@dataclass(frozen=True)
class GeneColumns:
    """The sampled cells as sparse columns of the kept genes, in order of token."""

    genes: np.ndarray  # (G,) int64: token of each column
    n_cells: int
    max_length: int
    indptr: np.ndarray  # (G + 1,) int64
    cells: np.ndarray  # (nnz,) int32, ascending in each column
    levels: np.ndarray  # (nnz,) uint16: X + 1

    @property
    def presence(self) -> np.ndarray:
        """(G,) int64: cells in which each gene is present."""
        return np.diff(self.indptr)


class Ranks(NamedTuple):
    """Exact ranks of all columns, as kernels/ranks.py defines them."""

    e: np.ndarray  # (nnz,) uint32
    n_positive: np.ndarray  # (G,) int64: m
    sum_squares: np.ndarray  # (G,) float64: sum of d², exact and rounded once


class Pairs(NamedTuple):
    """Pairs of columns u < v, each once, in order of (u, v)."""

    u: np.ndarray  # (pairs,) int64
    v: np.ndarray  # (pairs,) int64
    rho: np.ndarray  # (pairs,) float64


class Stages(Protocol):
    """The five stages of Algorithm 1 on one backend; all backends give the same bits.

    A backend's sample and columns may hold more, or other arrays, than :class:`Sample` and :class:`GeneColumns`.
    :func:`corrmask_fast.build_dependency_graph` itself reads a sample's ``presence`` (summed over its first axis) and
    ``value_sum``, and the columns' ``genes`` and ``n_cells``.
    """

    @property
    def rho_error(self) -> float | None:
        """Bound of rho's relative error, where the graph's params state it."""

    def read_sample(self, cells: Cells) -> Any:
        """Read the cells, and count in how many each gene is present and the sum of its values."""

    def make_columns(self, sample: Any, genes: np.ndarray) -> Any:
        """Turn cells into columns of ``genes`` (tokens, ascending)."""

    def rank_genes(self, columns: Any) -> Ranks:
        """Rank every column exactly."""

    def strongest_pairs(self, columns: Any, ranks: Ranks, n_neighbors: int, rho_min: float) -> Pairs:
        """Return pairs of which one gene is among the other's ``n_neighbors`` strongest and abs(rho) >= ``rho_min``."""

    def correlate_pairs(self, columns: Any, pairs: Pairs, min_cooccurrence: int) -> tuple[np.ndarray, np.ndarray]:
        """Return each pair's overlap (int64) and its rho over the overlap (float64; 0 below ``min_cooccurrence``)."""


class Expected(NamedTuple):
    """What an array that is read from a file must be; NaN lies in no range."""

    dtype: Any
    shape: tuple[int, ...]
    low: float
    high: float


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Expected]) -> None:
    """Raise InputError unless ``arrays`` are those ``expected``: kernels take their numbers as places in memory."""
    if arrays.keys() != expected.keys():
        raise InputError(
            f"it must hold {', '.join(sorted(expected))}; it holds {', '.join(sorted(arrays)) or 'nothing'}"
        )
    for name, (dtype, shape, low, high) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise InputError(f"{name} must be {np.dtype(dtype)} {shape}; it is {array.dtype} {array.shape}")
        if array.size and not (array.min() >= low and array.max() <= high):
            raise InputError(f"{name} must lie in [{low}, {high}]; it does not")
