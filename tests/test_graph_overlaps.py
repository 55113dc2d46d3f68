"""Overlaps of two genes: their cells, and rho over them, for every size of overlap and either way to find it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from llvmlite.binding import llvm_version_info

from corrmask_fast.graph.build.records import GeneColumns, Pairs
from corrmask_fast.graph.build.stages_cpu import CpuStages
from corrmask_fast.kernels import overlap as overlap_kernel


def exact_rho_of(x, y):
    """Integers by the definition, with the oracle's last three roundings."""

    def d(values):
        below = np.searchsorted(np.sort(values), values, side="left")
        return below + np.searchsorted(np.sort(values), values, side="right") - values.size

    a, b = d(x).astype(np.int64), d(y).astype(np.int64)
    squares = float((a * a).sum()) * float((b * b).sum())
    return float((a * b).sum()) / math.sqrt(squares) if squares else 0.0


@pytest.mark.parametrize("overlap", [0, 1, 2, 15, 16, 17, 200, 4_000, 32_766, 32_767, 32_768, 40_000])
def test_overlaps_of_every_size(overlap):
    """Tables of 16 bits up to 32 767 cells; few levels, all levels, the largest rank, partners that lack cells."""
    rng = np.random.default_rng(overlap)
    n_cells, max_length = overlap + 37, 2048
    holders = [rng.permutation(n_cells)[:overlap]] * 2
    levels = [rng.integers(1, max_length + 1, overlap), rng.integers(1, max_length + 1, overlap) // 300 + 1]
    levels.append(np.where(np.arange(overlap) < overlap - 1, 1, max_length))  # all but one are tied
    holders.append(holders[0])
    everywhere = np.arange(n_cells)
    holders.append(everywhere)  # the commonest: the others are found in it
    levels.append(rng.integers(1, max_length + 1, n_cells))
    for share, most in ((1.0, n_cells), (0.8, n_cells), (0.8, 40)):  # whole columns, a part of their cells, a few
        parts = [np.flatnonzero(np.isin(everywhere, rows) & (rng.random(n_cells) < share))[:most] for rows in holders]
        of = [dict(zip(rows.tolist(), row.tolist(), strict=True)) for rows, row in zip(holders, levels, strict=True)]
        indptr = np.cumsum([0, *(rows.size for rows in parts)])
        flat = np.array([of[g][cell] for g, rows in enumerate(parts) for cell in rows.tolist()], np.uint16)
        columns = GeneColumns(
            np.arange(2, 6), n_cells, max_length, indptr, np.concatenate(parts).astype(np.int32), flat
        )
        u, v = np.triu_indices(4, 1)
        got, rho = CpuStages().correlate_pairs(columns, Pairs(u, v, np.zeros(u.size)), 1)
        for k in range(u.size):
            both = np.intersect1d(parts[u[k]], parts[v[k]]).tolist()
            assert got[k] == len(both)
            assert rho[k] == exact_rho_of(*(np.array([of[g][cell] for cell in both]) for g in (u[k], v[k])))


@pytest.mark.skipif(llvm_version_info < (20,), reason="this LLVM cannot leave elements out of a vector")
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 31, 64, 1_000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_overlaps_in_vectors_are_those_found_one_by_one(size, share):
    rng = np.random.default_rng(size)
    n_cells = 3 * size + 1
    dense = np.append(np.where(rng.random(n_cells) < share, rng.integers(1, 65_536, n_cells), 0), 7).astype(np.uint16)
    cells = np.sort(rng.permutation(n_cells)[:size]).astype(np.int32)
    if size:
        cells[-1] = n_cells - 1  # the vector that reads beyond the last cell
    levels = rng.integers(1, 65_536, size).astype(np.uint16)
    found = []
    for find in (overlap_kernel.find_in_vectors, overlap_kernel.find_one_by_one):
        both = np.full(size + 16, 99, np.uint32)
        n = find(dense, cells, levels, 0, size, both, 0, size)
        found.append(both[:n].tolist())
    there = dense[cells] != 0
    expected = (dense[cells][there].astype(np.int64) << 16 | levels[there]).tolist()
    assert found == [expected, expected]
