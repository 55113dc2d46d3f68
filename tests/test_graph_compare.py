"""Merging and comparing graphs: worked by hand, and chance against graphs that were really rewired."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, InputError, Vocabulary, compare_graphs, merge_graphs
from corrmask_fast.graph.chance import fit_multipliers
from corrmask_fast.graph.compare import compare_all, comparison_table, save_comparisons_csv
from corrmask_fast.testing import make_graph, make_vocabulary

LETTERS = Vocabulary(("<pad>", "<mask>", *"ABCDEFG"), {"A": "Alpha"})
LUNG = DependencyGraph.from_edges([("A", "B", 0.5), ("B", "C", -0.25), ("D", "E", 1.0)], LETTERS)
SKIN = DependencyGraph.from_edges([("A", "B", 0.25), ("D", "E", -1.0), ("E", "F", 0.75)], LETTERS)
EYE = DependencyGraph.from_edges([("A", "B", -0.5), ("E", "F", 0.25), ("A", "G", 0.125)], LETTERS)


def edges_of(graph):
    edges, names = graph.edges(), LETTERS.names
    return {names[u] + names[v]: rho for u, v, rho in zip(*(c.tolist() for c in edges[:3]), strict=True)}


@pytest.mark.parametrize(
    ("keep", "combine", "expected"),
    [
        ("union", "mean", {"AB": 1 / 12, "BC": -0.25, "DE": 0, "EF": 0.5, "AG": 0.125}),
        (1, "strongest", {"AB": 0.5, "BC": -0.25, "DE": 1, "EF": 0.75, "AG": 0.125}),
        (2, "mean", {"AB": 1 / 12, "DE": 0, "EF": 0.5}),
        (2, "strongest", {"AB": 0.5, "DE": 1, "EF": 0.75}),
        ("intersection", "mean", {"AB": 1 / 12}),
        (3, "strongest", {"AB": 0.5}),
    ],
)
def test_merging(keep, combine, expected):
    for graphs in itertools.permutations([LUNG, SKIN, EYE]):
        merged = merge_graphs(graphs, keep, combine=combine)
        assert edges_of(merged) == {pair: np.float32(rho) for pair, rho in expected.items()}
        assert merged.rho_global is None
        least = {"union": 1, "intersection": 3}.get(keep, keep)
        assert merged.params["at_least"] == least
        assert merged.params["sources"] == sorted(graph.fingerprint[:16] for graph in (LUNG, SKIN, EYE))


def test_merging_does_not_depend_on_the_order_of_graphs():
    vocabulary = make_vocabulary(300)
    graphs = [make_graph(vocabulary, degree=60, seed=seed) for seed in range(5)]
    for graph in graphs:
        graph.rho_global = graph.rho / 3
    one, other = (merge_graphs(some, 2) for some in (graphs, graphs[::-1]))
    assert one.n_edges > 1000
    for name in ("indptr", "indices", "rho", "rho_global"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    graphs[0].rho_global = None
    assert merge_graphs(graphs).rho_global is None


def test_bad_merges_say_what_is_wrong():
    with pytest.raises(InputError, match="give at least two graphs; got 1"):
        merge_graphs([LUNG])
    for keep in (0, 3, "most", 1.5, True):
        with pytest.raises(InputError, match="keep must be 'union', 'intersection' or a number from 1 to 2; got"):
            merge_graphs([LUNG, SKIN], keep)
    with pytest.raises(InputError, match="combine must be 'mean' or 'strongest'; got 'sum'"):
        merge_graphs([LUNG, SKIN], combine="sum")
    other = DependencyGraph.from_edges([("A", "C")], Vocabulary(("<pad>", "<mask>", *"ACBDEFG")))
    for call in (merge_graphs, compare_all):
        with pytest.raises(
            InputError, match=r"graph 1 and graph 2 have different vocabularies \(token 3 is 'B' in one"
        ):
            call([LUNG, other] if call is merge_graphs else {"x": LUNG, "y": other})


def test_a_comparison_by_hand(tmp_path):
    comparison = compare_graphs(LUNG, SKIN, names=("lung", "skin"))
    assert (comparison.edges_a, comparison.edges_b, comparison.shared) == (3, 3, 2)
    assert comparison.jaccard == 0.5
    assert comparison.same_sign == 0.5
    assert comparison.rho_a.tolist() == [0.5, 1.0]
    assert comparison.rho_b.tolist() == [0.25, -1.0]
    assert math.isnan(comparison.rho_correlation)  # of two points it says nothing
    assert [LETTERS.names[token] for token in comparison.tokens] == list("ABCDEF")
    assert comparison.gene_jaccard.tolist() == [1, 0.5, 0, 1, 0.5, 0]
    assert comparison.median_gene_jaccard == 0.75  # of A, B, D, E
    comparison.save_genes_csv(tmp_path / "genes.csv")
    with (tmp_path / "genes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["gene"] == "A"
    assert rows[0]["symbol"] == "Alpha"
    assert (rows[1]["degree in lung"], rows[1]["degree in skin"], rows[1]["jaccard"]) == ("2", "1", "0.5")
    assert str(comparison).splitlines()[1].split()[:6] == ["lung", "|", "skin", "3", "3", "2"]


def test_every_pair_of_several(tmp_path):
    comparisons = compare_all({"lung": LUNG, "skin": SKIN, "eye": EYE})
    assert [comparison.names for comparison in comparisons] == [("lung", "skin"), ("lung", "eye"), ("skin", "eye")]
    assert [comparison.shared for comparison in comparisons] == [2, 1, 2]
    assert len(comparison_table(comparisons).splitlines()) == 4
    save_comparisons_csv(comparisons, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        assert [(row["second"], row["shared"]) for row in csv.DictReader(file)] == [
            ("skin", "2"),
            ("eye", "1"),
            ("eye", "2"),
        ]


def test_graphs_without_edges_compare_to_nothing():
    empty = DependencyGraph.from_edges([], LETTERS)
    comparison = compare_graphs(empty, LUNG)
    assert (comparison.shared, comparison.jaccard, comparison.expected_shared) == (0, 0, 0)
    assert math.isnan(comparison.fold)
    nothing = compare_graphs(empty, empty)
    assert math.isnan(nothing.jaccard)
    assert " - " in str(nothing)


def test_a_graph_is_equal_to_itself():
    graph = make_graph(make_vocabulary(200), degree=20)
    comparison = compare_graphs(graph, graph)
    assert comparison.jaccard == comparison.same_sign == 1
    assert comparison.rho_correlation == pytest.approx(1)
    assert np.all(comparison.gene_jaccard == 1)
    assert comparison.fold > 2


def test_random_graphs_keep_the_degrees():
    degrees = make_graph(make_vocabulary(200), degree=12).degrees
    x = fit_multipliers(degrees)
    linked = np.outer(x, x) / (1 + np.outer(x, x))
    np.fill_diagonal(linked, 0)
    assert degrees.max() > 150
    assert linked.sum(axis=1) == pytest.approx(degrees, rel=2e-2)
    assert np.all(linked < 1)


def test_chance_is_what_rewired_graphs_share():
    """Two graphs with hubs, rewired edge by edge with their degrees kept, share as many edges as expected."""
    networkx = pytest.importorskip("networkx")
    a, b = (make_graph(make_vocabulary(120), degree=degree, seed=degree) for degree in (6, 9))
    expected = compare_graphs(a, b).expected_shared

    def rewired(graph, seed):
        nodes = graph.to_networkx()
        networkx.double_edge_swap(nodes, 5 * graph.n_edges, max_tries=10**6, seed=seed)
        return {frozenset(edge) for edge in nodes.edges}

    shared = [len(rewired(a, seed) & rewired(b, 100 + seed)) for seed in range(12)]
    assert np.mean(shared) == pytest.approx(expected, rel=0.05)
    plain = a.n_edges * b.n_edges / (120 * 119 / 2)  # what chance without degrees would say
    assert plain < 0.7 * expected
