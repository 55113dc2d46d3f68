"""Modules of a graph: planted ones are found whole, sorted by strength, and named by the set that they were made of."""

from __future__ import annotations

import csv
import importlib.util
import math
import random
import sys

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, InputError, MissingExtraError, Vocabulary, find_modules
from corrmask_fast.graph.dependency_graph import graph_of_pairs
from corrmask_fast.graph.modules import linkage_modules, strongest_genes
from corrmask_fast.graph.plots import _module_genes
from corrmask_fast.testing import make_vocabulary


def planted(sizes=(12, 9, 6), *, overall=True):
    """Modules of strong edges, weak ones of both signs between them, and a pair of genes apart."""
    rng = np.random.default_rng(0)
    module = np.repeat(np.arange(len(sizes)), sizes)
    u, v = np.triu_indices(module.size, 1)
    same = module[u] == module[v]
    kept = same | (rng.random(u.size) < 0.1)
    u, v, same = u[kept], v[kept], same[kept]
    rho = np.where(same, rng.uniform(0.4, 0.9, u.size), rng.uniform(-0.3, 0.25, u.size)).astype(np.float32)
    u, v, rho = np.append(u, 40), np.append(v, 41), np.append(rho, np.float32(0.3))
    return graph_of_pairs(u + 2, v + 2, rho, make_vocabulary(60), {}, rho if overall else None)


GRAPH = planted()
MEMBERS = [set(range(2, 14)), set(range(14, 23)), set(range(23, 29))]
NAMES = GRAPH.vocabulary.names


NO_IGRAPH = importlib.util.find_spec("igraph") is None
METHODS = ["linkage", pytest.param("leiden", marks=pytest.mark.skipif(NO_IGRAPH, reason="igraph is not installed"))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("overall", [True, False])
def test_planted_modules_are_found_whole(method, overall):
    found = find_modules(planted(overall=overall), method=method)
    assert [set(members.tolist()) for members in found.members] == MEMBERS
    assert (found.method, found.n_searched, found.names) == (method, 29, ())
    rho = GRAPH.to_scipy().toarray()
    for members, strength in zip(found.members, found.strength, strict=True):
        assert strength == pytest.approx(rho[np.ix_(members, members)].sum(axis=1))
        assert np.all(np.diff(strength) <= 0)


@pytest.mark.parametrize("method", METHODS)
def test_modules_are_the_same_in_every_run_and_leave_the_generator_alone(method):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    first, second = (find_modules(GRAPH, method=method) for _ in range(2))
    assert random.random() == expected
    assert all(np.array_equal(a, b) for a, b in zip(first.members, second.members, strict=True))


def test_resolution_of_leiden():
    pytest.importorskip("igraph")
    fine = find_modules(GRAPH, method="leiden", resolution=3.0)
    assert len(find_modules(GRAPH, method="leiden", resolution=0.01).members) < 3 <= len(fine.members) + 3
    assert sum(part.size for part in fine.members) < 27  # groups of fewer than four genes are left out


def test_pictures_draw_these_modules():
    _, tokens, module, sizes = _module_genes(GRAPH, 60)
    found = find_modules(GRAPH, method="linkage")
    assert sizes.tolist() == [part.size for part in found.members]
    for i, members in enumerate(found.members):
        assert set(tokens[module == i]) == set(members)
    tokens, matrix = strongest_genes(GRAPH)
    assert [tokens[part].tolist() for part in linkage_modules(matrix)] == [part.tolist() for part in found.members]


def test_modules_are_named_by_their_best_set(tmp_path):
    sets = {
        "half of the first": [*NAMES[2:8], NAMES[40]],  # one gene of it is in no module, nor among those searched
        "first": [*NAMES[2:13], NAMES[23], "nobody"],
        "mixed": [*NAMES[2:6], *NAMES[14:18], *NAMES[23:27]],
        "second": NAMES[14:22],
        "one gene": [NAMES[23]],
    }
    found = find_modules(GRAPH, method="linkage", sets=sets)
    assert [name and name.name for name in found.names] == ["first", "second", None]
    first = found.names[0]
    assert (first.shared, first.genes) == (11, 12)
    # 11 or 12 genes shared of the 12 of the module and the 12 of the set, among 29; corrected for 4 sets and 3 modules
    p = sum(math.comb(12, k) * math.comb(17, 12 - k) for k in (11, 12)) / math.comb(29, 12)
    assert p <= first.q_value <= 12 * p
    lines = found.table().splitlines()
    assert lines[0].split() == ["module", "genes", "q", "set", "strongest", "genes"]
    strongest = [GRAPH.vocabulary.name_of(token) for token in found.members[0][:8].tolist()]
    assert lines[1].split()[:2] == ["1", "12"]
    assert lines[1].endswith(f"first (11 of 12)  {' '.join(strongest)}")
    assert lines[3].split()[:4] == ["3", "6", "-", "-"]
    assert lines[-1] == "3 modules of 4 genes or more (average linkage), with 27 of the 29 genes searched"
    assert found.table(1).splitlines()[2] == "... and 2 more"
    found.save_csv(tmp_path / "modules.csv")
    with (tmp_path / "modules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["module"]) for row in rows] == np.repeat([1, 2, 3], [12, 9, 6]).tolist()
    assert [row["gene"] for row in rows[:12]] == [NAMES[token] for token in found.members[0].tolist()]
    assert [float(row["strength"]) for row in rows[:12]] == found.strength[0].tolist()
    assert {(row["set"], row["q_value"]) for row in rows[:12]} == {("first", str(first.q_value))}
    assert {(row["set"], row["q_value"]) for row in rows[21:]} == {("", "")}
    find_modules(GRAPH, method="linkage").save_csv(tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text().startswith("module,gene,symbol,strength")


def test_without_igraph(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    assert find_modules(GRAPH).method == "linkage"
    with pytest.raises(MissingExtraError, match=r"'igraph'.*corrmask-fast\[leiden\]"):
        find_modules(GRAPH, method="leiden")


def test_with_igraph():
    pytest.importorskip("igraph")
    assert find_modules(GRAPH).method == "leiden"


def test_odd_graphs():
    genes = Vocabulary(("<pad>", "<mask>", *"ABC"))
    none = find_modules(DependencyGraph.from_edges([("A", "B", -0.5)], genes), sets={"a": ["A", "B"]})
    assert (none.members, none.names) == ((), ())
    assert none.table().splitlines()[-1].startswith("0 modules of 4 genes or more")
    named = find_modules(GRAPH, method="linkage", sets={"unknown": ["x", "y"]})
    assert named.names == (None, None, None)
    for graph, given, message in (
        (DependencyGraph.from_edges([], genes), {}, "the graph has no edges, so it has no modules"),
        (GRAPH, {"method": "louvain"}, "method must be 'leiden', 'linkage' or None; got 'louvain'"),
        (GRAPH, {"resolution": 0}, "resolution must be a number in"),
        (GRAPH, {"sets": ["A"]}, "sets must be a mapping"),
    ):
        with pytest.raises(InputError, match=message):
            find_modules(graph, **given)
