"""DependencyGraph: looking, converting, and a file that cannot be read wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from corrmask_fast import DependencyGraph, InputError, MissingExtraError, Vocabulary, build_dependency_graph

A, B, C, D, E = range(2, 7)
LETTERS = Vocabulary(("<pad>", "<mask>", *"ABCDE"), {"A": "RPL3", "C": "CD3D"})
# A - B 0.5, A - C -0.5, A - D 0.75, C - D 0.0; E alone.
INDPTR = np.array([0, 0, 0, 3, 4, 6, 8, 8])
INDICES = np.array([B, C, D, A, A, D, A, C])
RHO = np.array([0.5, -0.5, 0.75, 0.5, -0.5, 0.0, 0.75, 0.0])
RHO_GLOBAL = np.array([0.25, -0.5, 0.5, 0.25, -0.5, 0.3, 0.5, 0.3])
PARAMS = {"rho_min": 0.2, "seed": 7, "note": "π", "max_genes": None}


@pytest.fixture
def graph():
    return DependencyGraph(INDPTR, INDICES, RHO, LETTERS, PARAMS, RHO_GLOBAL)


@pytest.fixture
def saved(graph, tmp_path):
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    return path


def assert_same(a, b):
    for name in ("indptr", "indices", "rho", "rho_global"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right, strict=True)
    assert a.params == b.params
    assert a.vocabulary.names == b.vocabulary.names
    assert a.vocabulary.symbols == b.vocabulary.symbols
    assert a.fingerprint == b.fingerprint


# ---------------------------------------------------------------------------------------------------------- looking


def test_dtypes_and_inputs_stay(graph):
    assert [getattr(graph, name).dtype for name in ("indptr", "indices", "rho", "rho_global")] == [
        np.int64,
        np.int32,
        np.float32,
        np.float32,
    ]
    assert graph.n_edges == 4
    assert graph.degrees.tolist() == [0, 0, 3, 1, 2, 2, 0]
    assert repr(graph) == "DependencyGraph(4 edges between 4 of 5 genes)"
    assert INDICES.dtype == np.int64


@pytest.mark.parametrize("gene", [A, np.int64(A), "A", "RPL3"])
def test_neighbors_by_id_name_and_symbol_strongest_first(graph, gene):
    ids, rho = graph.neighbors(gene)
    assert ids.tolist() == [D, B, C]  # B and C are equally strong: the lower id first
    assert rho.tolist() == [0.75, 0.5, -0.5]
    assert (ids.dtype, rho.dtype) == (np.int32, np.float32)


def test_neighbors_of_a_gene_without_any_and_of_no_gene(graph):
    ids, rho = graph.neighbors("E")
    assert ids.size == rho.size == 0
    for gene in ("X", 7, -1, "<pad>", 0, 1):
        with pytest.raises(InputError, match=r"no gene .* in this vocabulary of 5 genes"):
            graph.neighbors(gene)


def test_what_neighbors_returns_can_be_changed(graph):
    ids, rho = graph.neighbors(A)
    ids[:], rho[:] = 0, 0
    assert graph.neighbors(A)[0].tolist() == [D, B, C]


def test_summary(graph):
    summary = graph.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["rho_quantiles"] == [-0.5, -0.125, 0.25, 0.5625, 0.75]
    assert summary["rho_global_negative_share"] == 0.25
    del summary["rho_quantiles"], summary["rho_global_quantiles"]
    assert summary == {
        "genes": 5,
        "genes_with_neighbors": 4,
        "edges": 4,
        "mean_degree": 2.0,
        "median_degree": 2.0,
        "max_degree": 3,
        "hub": "RPL3",
        "rho_negative_share": 0.25,
        "rho_global_negative_share": 0.25,
        "params": PARAMS,
        "fingerprint": graph.fingerprint,
    }


def test_summary_of_an_empty_graph():
    empty = DependencyGraph.from_edges([], LETTERS)
    assert empty.summary()["mean_degree"] == 0.0
    assert empty.summary()["hub"] is None
    assert repr(empty) == "DependencyGraph(0 edges between 0 of 5 genes)"


def test_fingerprint_tells_structure_and_vocabulary(graph):
    renamed = Vocabulary(("<pad>", "<mask>", *"ABCDF"))
    other = DependencyGraph.from_edges([(A, B), (A, C), (A, D)], LETTERS)
    weights = DependencyGraph(INDPTR, INDICES, RHO * 0.5, LETTERS)
    assert weights.fingerprint == graph.fingerprint  # masks come out the same
    assert len({g.fingerprint for g in (graph, other, DependencyGraph(INDPTR, INDICES, RHO, renamed))}) == 3
    assert len(bytes.fromhex(graph.fingerprint)) == 32


# ------------------------------------------------------------------------------------------------------- converting


def test_to_scipy(graph):
    matrix = graph.to_scipy()
    assert matrix.shape == (7, 7)
    assert matrix[[A], [D]] == 0.75
    assert matrix.nnz == 8  # a rho of 0 is an edge
    assert (matrix.todense() == matrix.todense().T).all()
    assert graph.to_scipy("rho_global")[[C], [D]] == np.float32(0.3)
    assert graph.to_scipy(None).sum() == 8
    matrix.data[:], matrix.indices[:] = 0, 0
    assert graph.neighbors(A)[0].tolist() == [D, B, C]


def test_to_scipy_of_what_is_not_there(graph):
    with pytest.raises(InputError, match=r"weights must be 'rho', 'rho_global' or None; got 'weight'"):
        graph.to_scipy("weight")
    with pytest.raises(InputError, match=r"no rho_global .* use weights='rho'"):
        DependencyGraph.from_edges([(A, B)], LETTERS).to_scipy("rho_global")


def test_to_networkx(graph):
    network = graph.to_networkx()
    assert list(network.nodes) == list("ABCDE")
    assert network.nodes["A"] == {"token": A, "symbol": "RPL3"}
    assert network.nodes["B"] == {"token": B, "symbol": "B"}
    assert {frozenset(edge) for edge in network.edges} == {frozenset(pair) for pair in ("AB", "AC", "AD", "CD")}
    assert network.edges["D", "A"] == {"rho": 0.75, "rho_global": 0.5}
    assert network.degree["E"] == 0
    assert DependencyGraph.from_edges([(A, B)], LETTERS).to_networkx().edges["A", "B"] == {"rho": 1.0}


def test_to_networkx_without_networkx(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(MissingExtraError, match=r"needs 'networkx'.*pip install"):
        graph.to_networkx()


def test_from_edges(graph):
    edges = [("D", "A", 0.75), ("RPL3", B, 0.5), (np.int64(A), "CD3D", -0.5), [C, 5, 0]]
    assert_same(
        DependencyGraph.from_edges(edges, LETTERS, params=PARAMS),
        DependencyGraph(INDPTR, INDICES, RHO, LETTERS, PARAMS),
    )
    assert DependencyGraph.from_edges(edges, LETTERS).params == {}
    assert DependencyGraph.from_edges(iter([(A, B)]), LETTERS).neighbors(B)[1].tolist() == [1.0]


def test_from_edges_repeated_and_looping():
    edges = [(A, B, 0.25), (B, A, -0.5), ("A", "B", 0.125), (C, C, 9.0), (D, E, 0.0), (E, D, 0.0), (A, B, 0.5)]
    graph = DependencyGraph.from_edges(edges, LETTERS)
    assert graph.n_edges == 2
    assert graph.neighbors(A)[1].tolist() == [-0.5]  # the largest absolute weight, the first of equals
    assert graph.neighbors(E)[0].tolist() == [D]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(A, B), (A, "ZZZ3")], r"pair 1: no gene 'ZZZ3' in this vocabulary of 5 genes; .* unknown='skip' leaves"),
        ([(A, None)], r"pair 0: .*unknown='skip' leaves"),
        ([(A,)], r"pair 0 must be \(gene, gene\) or \(gene, gene, weight\); got \(2,\)"),
        ([(A, B, 1, 1)], r"pair 0 must be \(gene, gene\) or"),
        (["AB"], r"pair 0 must be \(gene, gene\) or .*got 'AB'"),
        ([3], r"pair 0 must be \(gene, gene\) or .*got 3"),
        ([(A, B, "strong")], r"the weight of pair 0 must be a number in \(-inf, inf\); got 'strong'"),
        ([(A, B, float("nan"))], r"the weight of pair 0 must be a number .* got nan"),
        ([(A, B, 1e300)], r"rho must be finite \(in float32\)"),
    ],
)
def test_from_edges_of_bad_pairs(pairs, message):
    with pytest.raises(InputError, match=message):
        DependencyGraph.from_edges(pairs, LETTERS)


def test_from_edges_can_skip_unknown_genes():
    graph = DependencyGraph.from_edges([(A, B), (A, "ZZZ3"), (99, C), (C, D)], LETTERS, unknown="skip")
    assert graph.n_edges == 2
    with pytest.raises(InputError, match=r"unknown must be 'error' or 'skip'; got 'ignore'"):
        DependencyGraph.from_edges([], LETTERS, unknown="ignore")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(A, E), st.integers(A, E), st.integers(-9, 9)), max_size=20))
def test_from_edges_is_what_a_matrix_says(pairs):
    matrix, edge = np.zeros((7, 7)), np.zeros((7, 7), bool)
    for a, b, weight in pairs:
        if a != b:
            if not edge[a, b] or abs(weight) > abs(matrix[a, b]):
                matrix[a, b] = matrix[b, a] = weight
            edge[a, b] = edge[b, a] = True
    graph = DependencyGraph.from_edges(pairs, LETTERS)
    np.testing.assert_array_equal(graph.to_scipy().todense(), matrix)
    np.testing.assert_array_equal(graph.to_scipy(None).todense(), edge)


# ------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"indptr": INDPTR[:-1]},
            r"indptr must have one entry more than the vocabulary has tokens, 8; got 7; give the",
        ),
        ({"indptr": INDPTR + 1}, r"indptr must rise from 0 to the number of indices, 8, and never fall"),
        ({"indptr": [0, 0, 0, 3, 2, 6, 8, 8]}, r"indptr must rise from 0 to the number of indices, 8, and never fall"),
        ({"indptr": [0, 0, 0, 3, 4, 6, 8, 9]}, r"indptr must rise from 0 to the number of indices, 8"),
        ({"indptr": INDPTR.astype(float)}, r"indptr must be a one-dimensional integer array; got 1-d float64"),
        ({"indices": INDICES.reshape(2, 4)}, r"indices must be a one-dimensional integer array; got 2-d int64"),
        ({"indices": [B, C, 7, A, A, D, A, C]}, r"neighbors must be gene tokens in \[2, 7\); got neighbor 7 in row 2"),
        ({"indices": [1, C, D, A, A, D, A, C]}, r"neighbors must be gene tokens in \[2, 7\); got neighbor 1 in row 2"),
        ({"indices": [A, C, D, A, A, D, A, C]}, r"a gene cannot be its own neighbor; got neighbor 2 in row 2"),
        ({"indices": [C, B, D, A, A, D, A, C]}, r"neighbors must ascend in each row, each once; got neighbor 3"),
        ({"indices": [B, B, D, A, A, D, A, C]}, r"neighbors must ascend in each row, each once; got neighbor 3"),
        ({"indices": [B, C, E, A, A, D, A, C]}, r"every edge must be there in both directions"),
        ({"indptr": [0, 1, 1, 3, 4, 6, 8, 8]}, r"every edge must be there in both directions"),  # a row for <pad>
        ({"rho": RHO[:-1]}, r"rho must hold one number for each of 8 indices; got float64 \(7,\)"),
        ({"rho": RHO.astype(str)}, r"rho must hold one number for each of 8 indices; got"),
        ({"rho": np.where(RHO > 0.7, np.nan, RHO)}, r"rho must be finite \(in float32\); got nan"),
        ({"rho_global": RHO[:2]}, r"rho_global must hold one number for each of 8 indices"),
        ({"params": {"a": object()}}, r"params must hold plain JSON values"),
        ({"params": {"a": float("inf")}}, r"params must hold plain JSON values"),
    ],
)
def test_bad_structure(changes, message):
    arguments = {"indptr": INDPTR, "indices": INDICES, "rho": RHO, "params": {}, "rho_global": RHO_GLOBAL, **changes}
    with pytest.raises(InputError, match=message):
        DependencyGraph(vocabulary=LETTERS, **arguments)


def test_an_edge_in_one_direction_only():
    with pytest.raises(InputError, match=r"every edge must be there in both directions"):
        DependencyGraph([0, 0, 0, 1, 1, 1, 1, 1], [B], [1.0], LETTERS)


# ------------------------------------------------------------------------------------------------- saving and loading


def test_saved_and_loaded(graph, saved):
    assert_same(DependencyGraph.load(saved), graph)
    assert_same(DependencyGraph.load(str(saved)), graph)


def test_saved_and_loaded_without_rho_global_and_without_edges(tmp_path):
    for pairs in ([(A, B), (C, D, 0.5)], []):
        graph = DependencyGraph.from_edges(pairs, LETTERS)
        graph.save(tmp_path / "g")
        assert_same(DependencyGraph.load(tmp_path / "g"), graph)


def test_a_built_graph_saved_and_loaded(make_corpus, tmp_path):
    numbers = {"n_cells": np.int64(80), "seed": np.uint64(3), "rho_min": np.float32(0.125), "max_genes": np.int32(20)}
    graph = build_dependency_graph(
        make_corpus(100, 30), **numbers, min_cooccurrence=5, min_presence=5, progress=False, device="cpu"
    )
    assert graph.n_edges
    graph.save(tmp_path / "g")
    assert_same(DependencyGraph.load(tmp_path / "g"), graph)


def test_the_same_graph_gives_the_same_bytes(graph, saved, tmp_path):
    program = (
        "import sys; from corrmask_fast import DependencyGraph; DependencyGraph.load(sys.argv[1]).save(sys.argv[2])"
    )
    for hash_seed in ("1", "2"):
        again = tmp_path / hash_seed
        subprocess.run(
            [sys.executable, "-c", program, saved, again], env={"PYTHONHASHSEED": hash_seed, "PATH": ""}, check=True
        )
        assert again.read_bytes() == saved.read_bytes()
    reordered = DependencyGraph(INDPTR, INDICES, RHO, LETTERS, dict(reversed(PARAMS.items())), RHO_GLOBAL)
    reordered.save(tmp_path / "reordered")
    assert (tmp_path / "reordered").read_bytes() == saved.read_bytes()


def test_any_safetensors_reader_opens_it(graph, saved):
    tensors = load_file(saved)
    assert sorted(tensors) == ["indices", "indptr", "rho", "rho_global"]
    np.testing.assert_array_equal(tensors["indices"], graph.indices, strict=True)


def test_every_altered_byte_is_noticed(saved):
    """No single byte can change without an error: not in the header, not in a tensor."""
    content = saved.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1
        saved.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match=r"graph\.safetensors|vocabulary|params"):
                DependencyGraph.load(saved)


def test_every_truncation_is_noticed(saved):
    content = saved.read_bytes()
    for size in range(len(content)):
        saved.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"not a readable graph file \(truncated, damaged or of another kind\)"):
            DependencyGraph.load(saved)


def rewrite(path, change):
    """Change a file's header by hand, as its own SHA-256 forbids."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["corrmask_fast"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, {"corrmask_fast": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h, _t: h["params"].update(seed=8),
            r"was altered or damaged since it was saved \(its SHA-256 differs\)",
        ),
        (lambda h, _t: h["vocabulary"]["names"].reverse(), r"SHA-256 differs"),
        (lambda h, _t: h["vocabulary"]["symbols"].clear(), r"SHA-256 differs"),
        (lambda h, _t: h.pop("sha256"), r"SHA-256 differs"),
        (lambda _h, t: t["rho"].__setitem__(0, 0.25), r"SHA-256 differs"),
        (lambda _h, t: t.update(rho_global=t["rho"]), r"SHA-256 differs"),
        (lambda _h, t: t.pop("rho_global"), r"SHA-256 differs"),
        (lambda _h, t: t.pop("rho"), r"lacks a part of a graph"),
        (lambda _h, t: t.update(extra=t["rho"]), r"lacks a part of a graph, or has a part too many"),
        (lambda h, _t: h.pop("vocabulary"), r"lacks a part of a graph"),
        (lambda h, _t: h.update(version=2), r"has format version 2, .* reads up to 1; upgrade corrmask-fast"),
        (lambda h, _t: h.update(format="something else"), r"is a safetensors file, but no dependency graph"),
    ],
)
def test_altered_by_hand(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        DependencyGraph.load(saved)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match=r"no graph file at .*missing; build one"):
        DependencyGraph.load(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no graph file at"):
        DependencyGraph.load(tmp_path)
    (tmp_path / "text").write_text("indptr,indices\n0,1\n" * 50)
    with pytest.raises(InputError, match=r"text is not a readable graph file"):
        DependencyGraph.load(tmp_path / "text")
    for metadata in (None, {"format": "pt"}, {"corrmask_fast": "[]"}):
        save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model", metadata)
        with pytest.raises(InputError, match=r"is a safetensors file, but no dependency graph of this project"):
            DependencyGraph.load(tmp_path / "model")


def test_a_failed_save_leaves_the_old_file(graph, saved, tmp_path, monkeypatch):
    import safetensors.numpy

    content = saved.read_bytes()

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        graph.save(saved)
    assert saved.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
    with pytest.raises(InputError, match=r"the folder .* does not exist; create it first"):
        graph.save(tmp_path / "nowhere" / "g")
