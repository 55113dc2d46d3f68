"""Rewired graphs: the same degrees, no loop and no edge twice, other partners, the same from the same seed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, InputError, compare_graphs, rewired
from corrmask_fast.kernels.rewire import EMPTY, contains, insert, remove, swap_edges
from corrmask_fast.testing import make_graph, make_vocabulary


@pytest.mark.parametrize("degree", [0, 2, 8, 60])
@pytest.mark.parametrize("hub", [False, True])
def test_degrees_and_weights_stay_and_partners_change(degree, hub):
    graph = make_graph(make_vocabulary(300), degree=degree, hub=hub, seed=1)
    other = rewired(graph, 7)  # the constructor refuses loops, edges twice and edges of one direction
    assert np.array_equal(other.degrees, graph.degrees)
    assert np.array_equal(np.sort(other.edges().rho), np.sort(graph.edges().rho))
    assert other.params["rewired_from"] == graph.fingerprint[:16]
    assert np.array_equal(rewired(graph, 7).indices, other.indices)
    if degree:
        assert other.params["swaps"] == 10 * graph.n_edges
        assert not np.array_equal(rewired(graph, 8).indices, other.indices)


def test_what_is_left_of_the_edges_is_what_chance_gives():
    graph = make_graph(make_vocabulary(400), degree=20, hub=False, seed=3)
    shared = [compare_graphs(graph, rewired(graph, seed)) for seed in range(8)]
    expected = shared[0].expected_shared
    assert np.mean([each.shared for each in shared]) == pytest.approx(expected, abs=5 * np.sqrt(expected / 8))
    assert rewired(graph, 0, swaps_per_edge=0).indices.tolist() == graph.indices.tolist()


def test_every_graph_of_the_degrees_is_as_likely():
    # Six genes of degree 1: fifteen ways to pair them.
    vocabulary = make_vocabulary(6)
    graph = DependencyGraph.from_edges([("G0", "G1"), ("G2", "G3"), ("G4", "G5")], vocabulary)
    seen = {}
    for seed in range(1500):
        key = tuple(rewired(graph, seed, swaps_per_edge=7).indices.tolist())
        seen[key] = seen.get(key, 0) + 1
    counts = np.array(list(seen.values()))
    assert counts.size == 15
    assert ((counts - 100) ** 2 / 100).sum() < 14 + 5 * np.sqrt(28)  # chi-square, 14 degrees of freedom


def test_a_graph_that_no_swap_can_change():
    vocabulary = make_vocabulary(7)
    full = DependencyGraph.from_edges(combinations([f"G{i}" for i in range(7)], 2), vocabulary)
    star = DependencyGraph.from_edges([("G0", f"G{i}") for i in range(1, 7)], vocabulary)
    lone = DependencyGraph.from_edges([("G0", "G1")], vocabulary)
    for graph in (full, star, lone, DependencyGraph.from_edges([], vocabulary)):
        other = rewired(graph)
        assert other.params["swaps"] == 0
        assert np.array_equal(other.indices, graph.indices)


def test_the_table_of_edges_is_a_set():
    rng = np.random.default_rng(0)
    table, keys = np.full(64, EMPTY, np.int64), set()
    for key in rng.integers(0, 40, 3000).tolist():
        assert contains(table, key) == (key in keys)
        if key in keys:
            remove(table, key)
            keys.remove(key)
        elif len(keys) < 32:
            insert(table, key)
            keys.add(key)
        assert sorted(table[table != EMPTY].tolist()) == sorted(keys)


def test_swaps_by_hand():
    # Edges 1-2 and 3-4: to 1-4 and 3-2; then, the second turned, 1-4 and 2-3 to 1-3 and 2-4.
    u, v, table = np.array([1, 3]), np.array([2, 4]), np.full(16, EMPTY, np.int64)
    for key in (1 * 10 + 2, 3 * 10 + 4):
        insert(table, key)
    once = np.array([0]), np.array([1])
    assert swap_edges(u, v, 10, table, *once, np.array([0], np.uint8), 1) == 1
    assert {tuple(sorted(edge)) for edge in zip(u.tolist(), v.tolist(), strict=True)} == {(1, 4), (2, 3)}
    assert swap_edges(u, v, 10, table, *once, np.array([1], np.uint8), 1) == 1
    assert sorted(table[table != EMPTY].tolist()) in ([12, 34], [13, 24])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be an integer"),
        ({"swaps_per_edge": -1}, r"swaps_per_edge must be a number in \[0, 1000000.0\]; got -1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        rewired(make_graph(make_vocabulary(20)), **options)
