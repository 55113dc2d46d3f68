"""Neighbour tables as the masking kernels take them: CSR over the vocabulary, and bits that answer most questions.

CorrMask    a dependency graph, or several one behind the other:
indptr      (graphs · (V + 1),)   of graph g from g · (V + 1) on
indices     all neighbours; ``indptr`` counts through all graphs
lookup      (graphs · W,) words of 64 bits, W = V / 64 rounded up: which genes have neighbours
PMI         ordered pairs of tokens:
indptr, indices   u is followed by indices[indptr[u]:indptr[u + 1]]
lookup      2^k words: bit hash(u, v) is set for each pair
others      nothing, in the same form
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corrmask_fast.graph import DependencyGraph
    from corrmask_fast.vocabulary import Vocabulary

BITS_A_PAIR = 16  # of the filter, at least: so one pair in sixteen that is not in the table passes it
HASH = np.uint64(0x9E3779B97F4A7C15)


class NeighborTable(NamedTuple):
    """What a strategy looks up."""

    lookup: np.ndarray  # uint64
    indptr: np.ndarray  # int32, or int64 where there are so many neighbours
    indices: np.ndarray  # int32
    degree: int  # the largest number of neighbours
    fingerprint: str  # SHA-256: equal exactly where masks come out equal
    n_graphs: int = 0


def table_of_graphs(graphs: Sequence[DependencyGraph]) -> NeighborTable:
    """Stack dependency graphs of one vocabulary."""
    size = graphs[0].vocabulary.size
    flags = np.zeros((len(graphs), -(-size // 64) * 64), np.bool_)
    starts = np.cumsum([0, *(graph.indices.size for graph in graphs)])
    for row, graph in zip(flags, graphs, strict=True):
        row[:size] = graph.degrees > 0
    fingerprints = [graph.fingerprint for graph in graphs]
    both = hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
    return NeighborTable(
        np.packbits(flags, axis=1, bitorder="little").reshape(-1).view(np.uint64),
        _narrow(np.concatenate([graph.indptr + start for graph, start in zip(graphs, starts, strict=False)])),
        np.concatenate([graph.indices for graph in graphs]).astype(np.int32, copy=False),
        max(int(graph.degrees.max(initial=0)) for graph in graphs),
        fingerprints[0] if len(graphs) == 1 else both,
        len(graphs),
    )


def table_of_pairs(indptr: np.ndarray, indices: np.ndarray, fingerprint: str) -> NeighborTable:
    """Return the table of ordered pairs given as CSR over the vocabulary, ascending in each row."""
    size = indptr.size - 1
    words = 2 ** max(0, int(BITS_A_PAIR * indices.size - 1).bit_length() - 6)
    codes = np.repeat(np.arange(size, dtype=np.uint64), np.diff(indptr)) * np.uint64(size) + indices.astype(np.uint64)
    flags = np.zeros(64 * words, np.bool_)
    flags[(codes * HASH) >> np.uint64(64 - int(64 * words - 1).bit_length())] = True
    lookup = np.packbits(flags, bitorder="little").view(np.uint64)
    return NeighborTable(lookup, _narrow(indptr), indices.astype(np.int32, copy=False), 0, fingerprint)


def no_table(vocabulary: Vocabulary) -> NeighborTable:
    """Return the table of a strategy that needs none."""
    nothing = np.zeros(vocabulary.size + 1, np.int32)
    return NeighborTable(np.zeros(1, np.uint64), nothing, np.empty(0, np.int32), 0, vocabulary.fingerprint)


def _narrow(indptr: np.ndarray) -> np.ndarray:
    return indptr.astype(np.int32 if indptr[-1] < 2**31 else np.int64)
