"""Stability: repeats are builds that anyone can make, steady edges come back, and noise does not."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from corrmask_fast import Corpus, DependencyGraph, InputError, build_dependency_graph, edge_stability
from corrmask_fast.testing import make_vocabulary

OPTIONS = {"rho_min": 0.05, "min_cooccurrence": 21, "min_presence": 10, "progress": False}


def planted(n_cells=240, n_genes=40, seed=0):
    """Cells whose first ten genes rise and fall together; the others are noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_cells, n_genes))
    values[:, :10] += 1.5 * rng.normal(size=(n_cells, 1))
    cells = [np.argsort(-row, kind="stable")[: n_genes // 2] + 2 for row in values]
    indptr = np.arange(n_cells + 1) * (n_genes // 2)
    return Corpus(indptr, np.concatenate(cells), make_vocabulary(n_genes))


@pytest.fixture(scope="module")
def corpus():
    return planted()


@pytest.fixture(scope="module")
def graph(corpus):
    return build_dependency_graph(corpus, **OPTIONS, seed=5)


@pytest.fixture(scope="module")
def stability(corpus, graph):
    return edge_stability(corpus, graph, n_repeats=6, progress=False)


def test_a_repeat_is_a_build_on_part_of_the_cells(corpus, graph, stability):
    expected, others = np.zeros(graph.n_edges, np.int64), {}
    place = {(u, v): k for k, (u, v) in enumerate(zip(*(c.tolist() for c in graph.edges()[:2]), strict=True))}
    for repeat in range(1, 7):
        parameters = {**OPTIONS, "n_cells": 120, "min_cooccurrence": 11, "min_presence": 5, "seed": 5 + repeat}
        edges = build_dependency_graph(corpus, **parameters).edges()
        for pair in zip(edges.u.tolist(), edges.v.tolist(), strict=True):
            if pair in place:
                expected[place[pair]] += 1
            else:
                others[pair] = others.get(pair, 0) + 1
    assert stability.cells_per_repeat == 120
    assert stability.times.tolist() == expected.tolist()
    assert stability.frequency.tolist() == (expected / 6).tolist()
    found = zip(stability.other_u.tolist(), stability.other_v.tolist(), strict=True)
    assert dict(zip(found, stability.other_times.tolist(), strict=True)) == others
    assert others


def test_planted_edges_are_steady(graph, stability):
    edges = graph.edges()
    within = (edges.u < 12) & (edges.v < 12)
    assert within.sum() == 45
    assert stability.frequency[within].mean() > 0.99
    noise = (edges.u >= 12) & (edges.v >= 12)
    assert noise.sum() > 100
    assert stability.frequency[noise].mean() < 0.85


def test_filtering_keeps_what_comes_back(graph, stability):
    steady = stability.filter(0.8)  # 0.8 of 6: 5 or more
    kept = stability.times >= 5
    edges = graph.edges()
    for mine, theirs in zip(steady.edges(), edges, strict=True):
        assert np.array_equal(mine, theirs[kept])
    assert 0 < steady.n_edges < graph.n_edges
    assert steady.params["min_frequency"] == 0.8
    assert steady.params["rho_min"] == graph.params["rho_min"]
    assert stability.filter(0).n_edges == graph.n_edges
    assert stability.filter(0.5).n_edges == np.count_nonzero(stability.times >= 3)
    assert stability.filter(1).n_edges == np.count_nonzero(stability.times == 6)
    with pytest.raises(InputError, match="min_frequency must be a number in"):
        stability.filter(1.5)


def test_tables(graph, stability, tmp_path):
    stability.save_csv(tmp_path / "edges.csv")
    with (tmp_path / "edges.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == graph.n_edges
    times = [int(row["repeats"]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert sorted(times) == sorted(stability.times.tolist())
    first = rows[0]
    ids, rho = graph.neighbors(first["gene_a"])
    at = ids.tolist().index(graph.vocabulary.id_of(first["gene_b"]))
    assert np.float32(first["rho"]) == rho[at]
    lines = str(stability).splitlines()
    assert lines[0].split() == ["in", "at", "least", "edges", "of", "the", "graph's", "others"]
    assert lines[1].split()[:3] == ["6", "of", "6"]
    assert f"{np.count_nonzero(stability.times == 6):,}" == lines[1].split()[3]


def test_other_cells_and_other_graphs_are_refused(corpus, graph):
    merged = DependencyGraph.from_edges([("G1", "G2")], corpus.vocabulary)
    with pytest.raises(InputError, match="the graph does not say how it was built"):
        edge_stability(corpus, merged)
    with pytest.raises(InputError, match="built from 240 cells, and the corpus has 100"):
        edge_stability(corpus.take(np.arange(100)), graph)
    with pytest.raises(InputError, match="the corpus and the graph have different vocabularies"):
        edge_stability(planted(n_genes=30), graph)
    for wrong, message in (
        ({"n_repeats": 0}, "n_repeats must be an integer >= 1; got 0"),
        ({"fraction": 0}, r"fraction must be a number in \(0, 1\]; got 0"),
        ({"fraction": 1.5}, "fraction must be a number in"),
        ({"seed": -1}, "seed must be an integer"),
    ):
        with pytest.raises(InputError, match=message):
            edge_stability(corpus, graph, **wrong)


def test_a_sampled_graph_is_repeated_on_any_cells_of_its_corpus(corpus):
    graph = build_dependency_graph(corpus, **OPTIONS, n_cells=100, seed=2**64 - 1)
    stability = edge_stability(corpus, graph, n_repeats=1, fraction=0.7, seed=2**64 - 1, progress=False)
    parameters = {**OPTIONS, "n_cells": 70, "min_cooccurrence": 15, "min_presence": 7, "seed": 0}
    again = build_dependency_graph(corpus, **parameters)
    assert stability.times.sum() + stability.other_times.sum() == again.n_edges
