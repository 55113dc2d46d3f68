"""Made-up cells look like cells, the planted truth is there, and the score of recovery counts right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from corrmask_fast import DependencyGraph, InputError, Vocabulary
from corrmask_fast.synthetic import generate_cells, module_recovery


@pytest.fixture(scope="module")
def cells():
    return generate_cells(3000, 600, n_modules=6, n_types=4, seed=1)


def test_shapes_and_names(cells):
    assert cells.counts.shape == (3000, 600)
    assert cells.counts.dtype == np.int32
    assert cells.counts.data.min() == 1  # nothing negative, no zero stored
    assert cells.gene_names[0] == "GENE0001"
    assert cells.vocabulary.gene_range == (2, 602)
    assert np.bincount(cells.modules + 1).tolist() == [420, 30, 30, 30, 30, 30, 30]
    assert np.bincount(cells.cell_types).size == 4
    assert generate_cells(10, 20_000, seed=1).gene_names[-1] == "GENE20000"


def test_counts_are_like_real_ones(cells):
    presence = np.bincount(cells.counts.indices, minlength=600) / 3000
    assert 0.05 < presence.mean() < 0.16
    assert np.quantile(presence, 0.1) < 0.01  # rare genes
    assert presence.max() > 0.9  # housekeeping genes
    depth = np.asarray(cells.counts.sum(axis=1)).ravel()
    assert 0.25 < np.std(np.log(depth)) < 0.6
    # Overdispersed: more variance than Poisson counts of the same mean.
    dense = cells.counts[:, np.argsort(-presence)[:100]].toarray()
    assert np.median(dense.var(axis=0) / dense.mean(axis=0)) > 1.5


def test_a_seed_gives_the_same_cells_and_another_seed_others(cells):
    same, other = (generate_cells(3000, 600, n_modules=6, n_types=4, seed=seed) for seed in (1, 2))
    assert (same.counts != cells.counts).nnz == 0
    assert np.array_equal(same.modules, cells.modules)
    assert np.array_equal(same.cell_types, cells.cell_types)
    assert (other.counts != cells.counts).nnz > 1000


def test_genes_of_a_module_correlate_within_a_type_and_others_do_not(cells):
    commonest = np.argmax(np.bincount(cells.cell_types))
    rows = cells.counts[cells.cell_types == commonest].toarray().astype(float)
    rows /= rows.sum(axis=1, keepdims=True)
    common = np.flatnonzero((rows > 0).mean(axis=0) > 0.3)
    rho = spearmanr(rows[:, common]).statistic
    pairs = list(itertools.combinations(range(common.size), 2))
    modules = cells.modules[common]
    within = [rho[i, j] for i, j in pairs if modules[i] == modules[j] >= 0]
    apart = [rho[i, j] for i, j in pairs if modules[i] != modules[j]]
    assert len(within) >= 20
    assert np.median(within) > 0.25
    assert abs(np.median(apart)) < 0.1


def test_modules_differ_between_types(cells):
    dense = cells.counts.toarray() / np.asarray(cells.counts.sum(axis=1))
    activity = np.stack([dense[:, cells.modules == module].sum(axis=1) for module in range(6)])
    means = np.stack([activity[:, cells.cell_types == kind].mean(axis=1) for kind in range(4)])
    assert (means.max(axis=0) / means.min(axis=0)).max() > 2


def test_it_writes_what_the_tokenizer_reads(cells, tmp_path):
    anndata = pytest.importorskip("anndata")
    from corrmask_fast import read_corpus, tokenize

    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    adata = anndata.read_h5ad(path)
    assert (cells.counts != adata.X).nnz == 0
    assert np.array_equal(adata.var["module"], cells.modules)
    assert adata.obs["cell_type"].iloc[0] == f"type {cells.cell_types[0]}"
    report = tokenize(path, tmp_path / "cells.npz", cells.vocabulary, obs=["cell_type"], progress=False)
    assert (report.n_cells_written, report.n_genes_matched) == (3000, 600)
    corpus = read_corpus(tmp_path / "cells.npz")
    assert np.array_equal(np.diff(corpus.indptr), np.diff(cells.counts.indptr))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells must be an integer >= 1; got 0"),
        ({"n_genes": 100, "n_modules": 16}, "at most 15 with 100 genes .30% of them in modules.; got 16"),
        ({"n_types": 2.5}, "n_types must be an integer >= 1; got 2.5"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        generate_cells(**arguments)


# ------------------------------------------------------------------------------------------------------ module_recovery

GENES = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
MODULES = np.array([0, 0, 0, 1, 1, -1, -1, -1])


def test_recovery_worked_by_hand():
    graph = DependencyGraph.from_edges([("A", "B"), ("B", "C"), ("A", "D"), ("F", "G")], GENES)
    found = module_recovery(graph, MODULES)
    assert (found["n_edges"], found["n_genes"]) == (4, 6)  # E and H have no edge
    assert found["precision"] == 2 / 4
    assert found["recall"] == 2 / 3  # of A-B, A-C, B-C
    assert found["recall_by_chance"] == 4 / 15
    # Degrees A 2, B 2, C 1, D 1, F 1, G 1. Module 0: 25 - 9; module 1: 1 - 1. All: 64 - 12.
    assert found["precision_by_chance"] == 16 / 52
    everyone = module_recovery(graph, MODULES, expressed=np.ones(8, bool))
    assert everyone["recall"] == 2 / 4  # D-E has none
    assert everyone["recall_by_chance"] == 4 / 28
    some = module_recovery(graph, MODULES, expressed=np.isin(list("ABCDEFGH"), list("ABDE")))
    assert some["recall"] == 1 / 2  # of A-B and D-E
    assert some["recall_by_chance"] == 2 / 6
    assert some["precision"] == 2 / 4


def test_precision_by_chance_is_that_of_edges_drawn_by_degree():
    rng = np.random.default_rng(0)
    genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(60))))
    modules = rng.integers(-1, 4, 60)
    pairs = {
        tuple(sorted(pair)) for pair in rng.choice(60, (200, 2), p=rng.dirichlet(np.ones(60))) if pair[0] != pair[1]
    }
    graph = DependencyGraph.from_edges([(int(u) + 2, int(v) + 2) for u, v in pairs], genes)
    ends = np.repeat(np.arange(60), np.diff(graph.indptr)[2:])
    drawn = rng.choice(ends, (200_000, 2))
    drawn = drawn[drawn[:, 0] != drawn[:, 1]]
    same = (modules[drawn[:, 0]] == modules[drawn[:, 1]]) & (modules[drawn[:, 0]] >= 0)
    expected = module_recovery(graph, modules)["precision_by_chance"]
    assert abs(same.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / same.size)


def test_recovery_of_nothing_and_of_the_wrong_shape():
    empty = DependencyGraph.from_edges([], GENES)
    found = module_recovery(empty, MODULES)
    assert (found["n_edges"], found["n_genes"]) == (0, 0)
    assert np.isnan(
        [found["precision"], found["precision_by_chance"], found["recall"], found["recall_by_chance"]]
    ).all()
    assert module_recovery(empty, np.full(8, -1), expressed=np.ones(8))["recall_by_chance"] == 0
    with pytest.raises(InputError, match=r"modules must have one value for each of the 8 genes; got shape \(10,\)"):
        module_recovery(empty, np.zeros(10))
    with pytest.raises(InputError, match="expressed must have one value"):
        module_recovery(empty, MODULES, expressed=np.ones(3))
