"""Ranks and rho of a graph beside SciPy's, and exact sums as far as integers hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_cases import cells_of, dense_values, stages_of
from scipy.stats import spearmanr

from corrmask_fast.graph.build import memory
from corrmask_fast.graph.build.products import Cut, Rates
from corrmask_fast.graph.build.records import GeneColumns
from corrmask_fast.graph.build.stages_cpu import CpuStages


def test_columns_of_many_cells(make_corpus):
    """More cells in one call than are sorted by gene at a time."""
    corpus = make_corpus(4500, 12, seed=4)
    columns, _ = stages_of(corpus, 1, 20)
    X, present = dense_values(columns)
    for cell, genes in enumerate(cells_of(corpus)):
        places = {gene: 20 - place for place, gene in enumerate(genes[:20])}
        assert {columns.genes[g]: X[cell, g] + 1 for g in np.flatnonzero(present[cell])} == places


def assert_agrees_with_scipy(columns, ranks, *, at_most):
    X, present = dense_values(columns)
    pairs = CpuStages().strongest_pairs(columns, ranks, 10**6, 0.0)
    everywhere = spearmanr(X).statistic
    np.testing.assert_allclose(pairs.rho, everywhere[pairs.u, pairs.v], rtol=0, atol=1e-12)
    overlap, rho = CpuStages().correlate_pairs(columns, pairs, 2)
    compared = 0
    for k in range(0, pairs.u.size, max(1, pairs.u.size // at_most)):
        both = present[:, pairs.u[k]] & present[:, pairs.v[k]]
        x, y = X[both, pairs.u[k]], X[both, pairs.v[k]]
        assert overlap[k] == both.sum()
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert abs(rho[k] - spearmanr(x, y).statistic) <= 1e-12
            compared += 1
        else:
            assert rho[k] == 0
    assert compared > at_most / 2


@pytest.mark.parametrize("max_length", [2048, 60, 9])
def test_scipy_agrees_before_rounding(make_corpus, max_length):
    assert_agrees_with_scipy(*stages_of(make_corpus(700, 70, seed=8), 20, max_length), at_most=150)


@pytest.mark.parametrize("n_cells", [131_072, memory.MAX_CELLS_OF_64_BITS])
def test_sums_are_exact_at_the_limits(n_cells):
    """Columns whose sums come as close to the limit as they can: no ties to speak of, every cell full."""
    rng = np.random.default_rng(0)
    G = 3
    levels = rng.integers(2, 65_536, (G, n_cells)).astype(np.uint16)
    levels[1] = np.maximum(2, 65_537 - levels[0].astype(np.int64))  # as far from the first as can be
    indptr = np.arange(G + 1) * n_cells
    cells = np.tile(np.arange(n_cells, dtype=np.int32), G)
    columns = GeneColumns(np.arange(2, 2 + G), n_cells, 65_535, indptr, cells, levels.reshape(-1))
    ranks = CpuStages().rank_genes(columns)
    below = [np.concatenate([[0], np.cumsum(np.bincount(row, minlength=65_536))]) for row in levels]
    d = [below[g][levels[g]] + below[g][levels[g].astype(np.int64) + 1] - n_cells for g in range(G)]

    def dot(x, y):
        return sum(int((x[k : k + 100_000] * y[k : k + 100_000]).sum()) for k in range(0, n_cells, 100_000))

    assert ranks.sum_squares.tolist() == [float(dot(x, x)) for x in d]
    assert dot(d[0], d[0]) > n_cells**3 / 3 * 0.999
    exact = [
        float(dot(d[u], d[v])) / math.sqrt(float(dot(d[u], d[u])) * float(dot(d[v], d[v])))
        for u, v in ((0, 1), (0, 2), (1, 2))
    ]
    for rates in (Rates(scatter=math.inf), Rates(panel=math.inf), Rates(dense=math.inf)):
        pairs = CpuStages(cut=Cut(rates=rates)).strongest_pairs(columns, ranks, 5, 0.0)
        assert pairs.rho.tolist() == exact
    overlap, rho = CpuStages().correlate_pairs(columns, pairs, 1)
    assert overlap.tolist() == [n_cells] * 3
    assert rho.tolist() == exact  # every cell holds both
    assert exact[0] < -0.99


def test_the_limit_is_the_limit_of_int64():
    most = memory.MAX_CELLS_OF_64_BITS
    assert 4 * most**3 // 3 < 2**63 <= 4 * (most + 1000) ** 3 // 3


def test_scipy_agrees_on_real_cells(pbmc):
    assert_agrees_with_scipy(*stages_of(pbmc.take(np.arange(0, pbmc.n_cells, 3)), 450), at_most=200)
