"""Graphs for other tools: what they read back is the graph."""

from __future__ import annotations

import csv
import hashlib
import json

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, InputError, Vocabulary, export_graph
from corrmask_fast.graph.dependency_graph import graph_of_pairs
from corrmask_fast.graph.export import graph_to_anndata

GENES = Vocabulary(
    ("<pad>", "<mask>", "ENSG01", "ENSG02", "ENSG03", "ENSG04"), {"ENSG01": "RPL3", "ENSG02": "Å,b", "ENSG03": "CD3E"}
)
EDGES = {(2, 3): (0.1, 0.3), (2, 4): (-0.5, -0.25), (3, 4): (0.7, 0.2)}
PAIRS = np.array(list(EDGES))
RHO, OVERALL = np.array(list(EDGES.values()), np.float32).T
GRAPH = graph_of_pairs(PAIRS[:, 0], PAIRS[:, 1], RHO, GENES, {"seed": 0, "max_genes": None}, OVERALL)


def test_an_edge_list(tmp_path):
    exported = export_graph(GRAPH, tmp_path / "edges.csv")
    assert (exported.genes, exported.edges) == (3, 3)
    with (tmp_path / "edges.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["gene_a", "symbol_a", "gene_b", "symbol_b", "rho", "rho_global"]
    assert list(rows[0].values()) == ["ENSG01", "RPL3", "ENSG02", "Å,b", "0.1", "0.3"]
    assert [np.float32(row["rho"]) for row in rows] == RHO.tolist()
    again = DependencyGraph.from_edges([(row["gene_a"], row["gene_b"], float(row["rho"])) for row in rows], GENES)
    assert again.fingerprint == GRAPH.fingerprint
    assert np.array_equal(again.rho, GRAPH.rho)


def test_an_edge_list_without_rho_over_all_cells(tmp_path):
    export_graph(DependencyGraph.from_edges([("RPL3", "CD3E", 0.5)], GENES), tmp_path / "edges.csv")
    lines = (tmp_path / "edges.csv").read_text().splitlines()
    assert lines == ["gene_a,symbol_a,gene_b,symbol_b,rho", "ENSG01,RPL3,ENSG03,CD3E,0.5"]


def test_graphml(tmp_path):
    networkx = pytest.importorskip("networkx")
    export_graph(GRAPH, tmp_path / "graph.graphml")
    nodes = networkx.read_graphml(tmp_path / "graph.graphml")
    assert list(nodes.nodes) == ["ENSG01", "ENSG02", "ENSG03"]  # no gene without a neighbour
    assert nodes.nodes["ENSG02"] == {"token": 3, "symbol": "Å,b"}
    for (u, v), (rho, overall) in EDGES.items():
        edge = nodes.edges[GENES.names[u], GENES.names[v]]
        assert (np.float32(edge["rho"]), np.float32(edge["rho_global"])) == (np.float32(rho), np.float32(overall))


def test_a_new_anndata(tmp_path):
    anndata = pytest.importorskip("anndata")
    export_graph(GRAPH, tmp_path / "graph.h5ad")
    for adata in (anndata.read_h5ad(tmp_path / "graph.h5ad"), graph_to_anndata(GRAPH)):
        assert adata.shape == (0, 4)
        assert adata.var["symbol"].tolist() == ["RPL3", "Å,b", "CD3E", "ENSG04"]
        assert adata.var["degree"].tolist() == [2, 2, 2, 0]
        for name in ("rho", "rho_global"):
            expected = GRAPH.to_scipy(name).toarray()[2:, 2:]
            assert np.array_equal(adata.varp[f"corrmask_{name}"].toarray(), expected)
        assert adata.varp["corrmask_rho"].dtype == np.float32
        assert json.loads(adata.uns["corrmask"]["params"]) == {"seed": 0, "max_genes": None}


def test_into_an_anndata_of_ones_own(tmp_path):
    """Genes by symbol in another order, one unknown, one twice, one missing; the counts stay as they are."""
    anndata, sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
    pd = pytest.importorskip("pandas")

    var = pd.DataFrame({"known": [True] * 5}, index=["CD3E", "nothing", "RPL3", "RPL3-copy", "ENSG04"])
    var["gene_id"] = ["ENSG03.7", "nothing", "ENSG01", "ENSG01", "ENSG04"]
    counts = sparse.random(6, 5, 0.5, "csr", random_state=0)
    adata = anndata.AnnData(counts, var=var, obs=pd.DataFrame(index=list("abcdef")))
    adata.varp["mine"] = np.eye(5)
    adata.uns["note"] = "kept"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    before = hashlib.sha256((tmp_path / "cells.h5ad").read_bytes()).hexdigest()

    exported = export_graph(GRAPH, tmp_path / "out.h5ad", into=tmp_path / "cells.h5ad")
    assert (exported.genes, exported.edges) == (2, 1)
    assert hashlib.sha256((tmp_path / "cells.h5ad").read_bytes()).hexdigest() == before
    for again in (1, 2):  # in place, and over an older one
        out = anndata.read_h5ad(tmp_path / "out.h5ad")
        expected = np.zeros((5, 5), np.float32)
        expected[0, 2] = expected[2, 0] = -0.5
        assert np.array_equal(out.varp["corrmask_rho"].toarray(), expected)
        assert np.array_equal(out.varp["corrmask_rho_global"].toarray(), expected / 2)
        assert (counts != out.X).nnz == 0
        assert np.array_equal(out.varp["mine"], np.eye(5))
        assert out.uns["note"] == "kept"
        assert out.uns["corrmask"]["fingerprint"] == GRAPH.fingerprint
        if again == 1:
            export_graph(GRAPH, tmp_path / "out.h5ad", into=tmp_path / "out.h5ad", gene_column="gene_id")
    with pytest.raises(InputError, match=r"has no var column 'ids'"):
        export_graph(GRAPH, tmp_path / "no.h5ad", into=tmp_path / "cells.h5ad", gene_column="ids")
    other = DependencyGraph.from_edges([("X", "Y")], Vocabulary(("<pad>", "<mask>", "X", "Y")))
    with pytest.raises(InputError, match=r"no gene of .* is in the vocabulary"):
        export_graph(other, tmp_path / "no.h5ad", into=tmp_path / "cells.h5ad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad"]


def test_bad_places(tmp_path):
    with pytest.raises(InputError, match=r"ending in \.csv, \.graphml or \.h5ad; got .*graph\.txt"):
        export_graph(GRAPH, tmp_path / "graph.txt")
    with pytest.raises(
        InputError, match=r"into must be left out, and gene_column too, unless the output ends in \.h5ad"
    ):
        export_graph(GRAPH, tmp_path / "graph.csv", into=tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match="gene_column names a column of the file given as into"):
        export_graph(GRAPH, tmp_path / "graph.h5ad", gene_column="index")
    with pytest.raises(InputError, match=r"no file at .*cells\.h5ad"):
        export_graph(GRAPH, tmp_path / "graph.h5ad", into=tmp_path / "cells.h5ad")
    assert not list(tmp_path.iterdir())
