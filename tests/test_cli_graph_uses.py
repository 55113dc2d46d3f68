"""``graph plot | enrich | modules | merge | compare | stability | export`` at the command line."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from corrmask_fast import (
    Corpus,
    DependencyGraph,
    build_graphs_by,
    edge_stability,
    enrich_gene_sets,
    find_modules,
    merge_graphs,
    read_corpus,
    write_corpus,
)
from corrmask_fast.cli.main import main

OPTIONS = {"rho_min": 0.05, "min_cooccurrence": 20, "min_presence": 10, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_corpus):
    """A corpus with donors (``cells.npz``), and the graph of each: ``a.safetensors``, ``b.safetensors``."""
    folder = tmp_path_factory.mktemp("uses")
    corpus = make_corpus(300, 30, seed=4)
    donors = np.array(["a", "b"])[np.random.default_rng(0).integers(2, size=300)]
    corpus = Corpus(corpus.indptr, corpus.tokens, corpus.vocabulary, obs={"donor": donors})
    write_corpus(corpus, folder / "cells.npz")
    for donor, graph in build_graphs_by(corpus, "donor", **OPTIONS).items():
        graph.save(folder / f"{donor}.safetensors")
    return folder


@pytest.fixture
def graph(folder, capsys):
    """Run ``graph …`` in the folder; returns what it printed, or with ``fails`` the one line of its error."""

    def run(*arguments, fails=False):
        capsys.readouterr()
        code = main(["graph", *(str(a).replace("@", f"{folder}/") for a in arguments)])
        out, err = capsys.readouterr()
        assert code == (2 if fails else 0), err
        assert err.count("\n") == fails
        assert not (fails and out)
        return err if fails else out

    return run


@pytest.fixture
def sets(folder):
    """Gene sets: the partners of two genes with each, and one of genes that are not there."""
    stored = DependencyGraph.load(folder / "a.safetensors")
    hubs = np.argsort(-stored.degrees)[:2].tolist()
    lines = [
        [f"hub {hub}", "link", *(stored.vocabulary.names[t] for t in (hub, *stored.neighbors(hub)[0]))] for hub in hubs
    ]
    lines.append(["strange", "link", "NOBODY", "NOTHING"])
    (folder / "sets.gmt").write_text("".join("\t".join(line) + "\n" for line in lines))
    return folder / "sets.gmt"


def test_enrich(folder, graph, sets):
    out = graph("enrich", "@a.safetensors", sets, "--csv", "@enriched.csv", "-n", "1")
    found = enrich_gene_sets(DependencyGraph.load(folder / "a.safetensors"), sets)
    assert out == f"{found.table(1)}\nsaved to {folder}/enriched.csv\n"
    assert "2 of " in out
    assert "1 left out: fewer than two of their genes have a partner" in out
    with (folder / "enriched.csv").open(newline="") as file:
        assert [row["set"] for row in csv.DictReader(file)] == list(found.names)
    assert "no file at" in graph("enrich", "@a.safetensors", "@none.gmt", fails=True)
    assert "--csv" in graph("enrich", "@a.safetensors", sets, "--csv", sets, fails=True)  # an input
    assert "-n must be an integer >= 0; got -1" in graph("enrich", "@a.safetensors", sets, "-n", "-1", fails=True)


def test_modules(folder, graph, sets):
    out = graph("modules", "@a.safetensors", "--method", "linkage", "--sets", sets, "--csv", "@modules.csv")
    found = find_modules(DependencyGraph.load(folder / "a.safetensors"), method="linkage", sets=sets)
    assert out == f"{found.table(20)}\nsaved to {folder}/modules.csv\n"
    assert "--method must be 'leiden'" in graph("modules", "@a.safetensors", "--method", "kmeans", fails=True)
    assert "--resolution must be a number" in graph("modules", "@a.safetensors", "--resolution", "-1", fails=True)


def test_merge(folder, graph):
    out = graph("merge", "@a.safetensors", "@b.safetensors", "-o", "@both.safetensors", "--keep", "2")
    expected = merge_graphs([DependencyGraph.load(folder / f"{name}.safetensors") for name in "ab"], 2)
    assert DependencyGraph.load(folder / "both.safetensors").fingerprint == expected.fingerprint
    assert "at_least=2, combine=mean, merged_graphs=2" in out
    assert "got 1" in graph("merge", "@a.safetensors", "-o", "@one.safetensors", fails=True)
    assert "--keep must be 'union'" in graph(
        "merge", "@a.safetensors", "@b.safetensors", "-o", "@x.safetensors", "--keep", "3", fails=True
    )
    assert "must end in .safetensors" in graph("merge", "@a.safetensors", "@b.safetensors", "-o", "@x.h5", fails=True)
    assert not (folder / "x.safetensors").exists()


def test_compare(folder, graph):
    pytest.importorskip("matplotlib")
    files = ["--csv", "@all.csv", "--genes-csv", "@genes.csv", "--plot", "@compare.png"]
    out = graph("compare", "@a.safetensors", "@b.safetensors", *files)
    assert out.splitlines()[1].startswith("a | b ")
    with (folder / "all.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert f" {int(row['shared']):,} " in out
    assert (folder / "genes.csv").read_text().startswith("gene,symbol,degree in a,degree in b,")
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "at least two graphs to compare; got 1" in graph("compare", "@a.safetensors", fails=True)
    assert "--genes-csv is for two graphs; got 3" in graph(
        "compare", "@a.safetensors", "@b.safetensors", "@c.safetensors", "--genes-csv", "@x.csv", fails=True
    )
    assert "is given twice" in graph("compare", "@a.safetensors", "@a.safetensors", fails=True)
    assert "a picture must end in" in graph("compare", "@a.safetensors", "@b.safetensors", "--plot", "@x", fails=True)


def test_stability(folder, graph):
    given = ["stability", "@cells.npz", "@a.safetensors", "--no-progress"]
    out = graph(*given, "--where", "donor=a", "--n-repeats", "3", "-o", "@steady.safetensors", "--csv", "@edges.csv")
    corpus, whole = read_corpus(folder / "cells.npz"), DependencyGraph.load(folder / "a.safetensors")
    cells = corpus.select(np.flatnonzero(corpus.obs["donor"] == "a"))
    expected = edge_stability(cells, whole, n_repeats=3, progress=False)
    steady = DependencyGraph.load(folder / "steady.safetensors")
    assert steady.fingerprint == expected.filter(0.8).fingerprint
    assert out.startswith(expected.table())
    assert out.endswith(f"saved to {folder}/steady.safetensors: {steady}\n")
    assert len((folder / "edges.csv").read_text().splitlines()) == 1 + whole.n_edges
    assert "and the corpus has 300; give the corpus" in graph(*given, fails=True)
    assert "--where must be COLUMN=VALUE" in graph(*given, "--where", "donor", fails=True)
    assert "no cell has 'c' in obs column 'donor'; there are a, b" in graph(*given, "--where", "donor=c", fails=True)
    assert "no obs column 'organ'" in graph(*given, "--where", "organ=a", fails=True)
    assert "--fraction must be a number in" in graph(*given, "--where", "donor=a", "--fraction", "2", fails=True)
    assert "--min-frequency must be a number" in graph(*given, "--min-frequency", "2", fails=True)


def test_export(folder, graph):
    whole = DependencyGraph.load(folder / "a.safetensors")
    out = graph("export", "@a.safetensors", "@edges.csv")
    genes = np.count_nonzero(whole.degrees)
    assert out == f"saved to {folder}/edges.csv: {whole.n_edges:,} edges between {genes:,} genes\n"
    assert len((folder / "edges.csv").read_text().splitlines()) == 1 + whole.n_edges
    assert "ending in .csv, .graphml or .h5ad" in graph("export", "@a.safetensors", "@edges.tsv", fails=True)
    assert "--into" in graph("export", "@a.safetensors", "@x.csv", "--into", "@cells.npz", fails=True)
    pytest.importorskip("anndata")
    assert "not a readable .h5ad" in graph("export", "@a.safetensors", "@x.h5ad", "--into", "@cells.npz", fails=True)


def test_plot(folder, graph):
    pytest.importorskip("matplotlib")
    assert graph("plot", "@a.safetensors", "@a.png", "--kind", "degree") == f"saved to {folder}/a.png\n"
    graph("plot", "@a.safetensors", "@a.svg", "--kind", "modules", "--n-genes", "12")
    assert (folder / "a.svg").exists()
    assert "kind must be one of" in graph("plot", "@a.safetensors", "@x.png", "--kind", "pie", fails=True)
    assert "--n-genes belongs to --kind modules" in graph(
        "plot", "@a.safetensors", "@x.png", "--n-genes", "9", fails=True
    )
    assert "no graph file at" in graph("plot", "@none.safetensors", "@x.png", fails=True)
    assert not (folder / "x.png").exists()
