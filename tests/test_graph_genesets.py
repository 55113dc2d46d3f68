"""Gene sets against a graph: worked by hand, and chance against graphs rewired with the same degrees."""

from __future__ import annotations

import csv
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import poisson

from corrmask_fast import (
    DependencyGraph,
    InputError,
    Vocabulary,
    build_dependency_graph,
    enrich_gene_sets,
    read_corpus,
    read_gene_sets,
    rewired,
    tokenize,
)
from corrmask_fast.graph.chance import EdgesWithin
from corrmask_fast.graph.genesets import ribosomal_genes, set_cohesion

VOCABULARY = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))))


def make_graph(pairs):
    return DependencyGraph.from_edges([tuple(map(int, pair)) for pair in pairs], VOCABULARY)


def test_cohesion_worked_by_hand():
    # Set {2, 3, 4}: edges 2-3 and 3-9; beside it 7-8 and 8-9.
    found = set_cohesion(make_graph([(2, 3), (3, 9), (7, 8), (8, 9)]), [2, 3, 4])
    assert (found.genes, found.partners) == (2, 3)
    assert found.share == 2 / 3
    assert found.enrichment == found.share / found.chance
    assert "66.7 % of the 3 partners of 2 genes" in str(found)
    # A ring of ten genes: all degrees are equal, so a partner of one of three is any of the nine others alike.
    ring = set_cohesion(make_graph([(i + 2, (i + 1) % 10 + 2) for i in range(10)]), [2, 3, 7])
    assert ring.share == 2 / 6
    assert ring.chance == pytest.approx(2 / 9, rel=1e-3)


def test_chance_is_that_of_graphs_rewired_with_the_same_degrees():
    """A set of hubs, of which any two are linked nearly always, and others."""
    rng = np.random.default_rng(0)
    hubs = [(hub, other) for hub in range(2, 8) for other in range(hub + 1, 42) if rng.random() < 0.7]
    graph = make_graph(hubs + [rng.choice(40, 2, replace=False) + 2 for _ in range(60)])
    expected = set_cohesion(graph, range(2, 12)).chance
    shares = [set_cohesion(rewired(graph, seed), range(2, 12)).share for seed in range(100)]
    assert expected == pytest.approx(np.mean(shares), rel=0.05)


def hub_graph(n_genes=150, seed=0):
    """A graph of few hubs and many genes with few partners."""
    rng = np.random.default_rng(seed)
    weight = rng.lognormal(0, 1.2, n_genes)
    linked = rng.random((n_genes, n_genes)) < np.minimum(4 * np.outer(weight, weight) / weight.sum(), 0.9)
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(n_genes))))
    return DependencyGraph.from_edges(np.argwhere(np.triu(linked, 1)) + 2, vocabulary)


def counted_within(graph, members):
    """Edges within a set, pair by pair."""
    return sum(members.issuperset((int(u), int(v))) for u, v in zip(*graph.edges()[:2], strict=True))


def test_enrichment_is_that_of_a_permutation():
    """Mean, standard deviation and p-value of sets, against graphs rewired with the same degrees."""
    graph, rng, n = hub_graph(), np.random.default_rng(1), 600
    by_degree = np.argsort(-graph.degrees, kind="stable").tolist()
    sets = {
        "hubs": by_degree[:12],
        "hubs and others": by_degree[:6] + by_degree[60:80],
        "any": (rng.choice(150, 40, replace=False) + 2).tolist(),
        "many": by_degree[10:90],
        "partners": [by_degree[30], *graph.neighbors(by_degree[30])[0].tolist()],
        "few": by_degree[100:110],
    }
    found = enrich_gene_sets(graph, sets)
    assert set(found.names) == set(sets)
    random = [rewired(graph, seed) for seed in range(n)]
    for i, name in enumerate(found.names):
        members = set(sets[name])
        times = np.array([counted_within(other, members) for other in random])
        assert found.edges[i] == counted_within(graph, members)
        sd = times.std(ddof=1)
        assert abs(found.expected[i] - times.mean()) < 4 * sd / np.sqrt(n) + 0.01 * found.expected[i]
        assert found.sd[i] == pytest.approx(sd, rel=4 / np.sqrt(2 * n) + 0.02)
        p = (1 + np.count_nonzero(times >= found.edges[i])) / (n + 1)
        assert abs(found.p_value[i] - p) < 4 * np.sqrt(p * (1 - p) / n) + 0.02, name
    # The variance of independent edges would be far from it.
    x = EdgesWithin(graph.degrees)
    n_hubs = np.bincount(x._kind[sets["many"]], minlength=x._inverse.size)
    independent = (n_hubs @ x._varies @ n_hubs - n_hubs @ np.diag(x._varies)) / 2
    assert np.sqrt(independent) > 1.5 * found.sd[found.names.index("many")]


def test_random_sets_are_seldom_enriched():
    graph, rng = hub_graph(seed=2), np.random.default_rng(3)
    sets = {f"set {i}": (rng.choice(150, rng.integers(5, 60), replace=False) + 2).tolist() for i in range(400)}
    found = enrich_gene_sets(graph, sets)
    assert 4 <= np.count_nonzero(found.p_value <= 0.05) <= 32  # 20 by chance, a few less as edges are whole numbers
    assert not (found.q_value <= 0.05).any()
    assert abs(np.mean((found.edges - found.expected) / found.sd)) < 0.2


def test_enrichment_worked_by_hand(tmp_path):
    """A ring of twelve: each gene has two partners of eleven others, of a set of three 6/11 within."""
    ring = make_graph([(i + 2, (i + 1) % 12 + 2) for i in range(12)])
    sets = {"run": ["G0", "G1", "G2", "nobody"], "apart": [2, 4, 6], "one": ["G0", "G39", "nobody"], "none": ["x"]}
    found = enrich_gene_sets(ring, sets)
    assert found.names == ("run", "apart")
    assert (found.size.tolist(), found.known.tolist(), found.genes.tolist()) == ([4, 3], [3, 3], [3, 3])
    assert found.edges.tolist() == [2, 0]
    assert found.expected == pytest.approx([6 / 11] * 2, rel=1e-3)
    assert (found.left_out, found.unknown, found.n_named) == (("one", "none"), ("nobody", "x"), 7)
    assert found.fold == pytest.approx([22 / 6, 0], rel=1e-3)
    # Poisson's tail where mean and variance are equal, here nearly: the variance is below the mean.
    assert found.p_value[0] < poisson.sf(1, 6 / 11)
    assert found.p_value.tolist() == [pytest.approx(0.08, abs=0.04), 1.0]
    assert found.q_value.tolist() == [pytest.approx(2 * found.p_value[0]), 1.0]  # Benjamini and Hochberg of two
    table = found.table().splitlines()
    assert table[0].split() == ["set", "genes", "of", "edges", "by", "chance", "sd", "fold", "p", "q"]
    assert table[1].split()[:5] == ["run", "3", "4", "2", "0.5"]
    assert "2 sets, 0 of them with q <= 0.05; 2 left out: fewer than two of their genes have a partner" in table[4]
    assert table[5] == "2 of 7 genes are not in the vocabulary, such as 'nobody'"
    assert found.table(1).splitlines()[2] == "... and 1 more"
    found.save_csv(tmp_path / "sets.csv")
    with (tmp_path / "sets.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["genes_in_set"], row["edges"]) for row in rows] == [("run", "4", "2"), ("apart", "3", "0")]
    assert [float(row["p_value"]) for row in rows] == found.p_value.tolist()


def test_where_degrees_leave_no_choice_nothing_is_enriched():
    """In a complete graph and in a star every graph with these degrees is the same."""
    complete = make_graph(combinations(range(2, 14), 2))
    star = make_graph([(2, other) for other in range(3, 20)])
    for graph, sets in (
        (complete, {"some": range(2, 8), "all": range(2, 14)}),
        (star, {"hub": [2, 3, 4], "no": [5, 6]}),
    ):
        found = enrich_gene_sets(graph, sets)
        assert found.edges == pytest.approx(found.expected, abs=0.2)
        assert found.p_value.min() > 0.3


def test_what_cannot_be_tested(tmp_path):
    graph = make_graph([(2, 3)])
    with pytest.raises(
        InputError, match=r"none of 1 gene sets has two genes with a partner .* has 2 such genes; 1 genes"
    ):
        enrich_gene_sets(graph, {"a": ["G0", "G7", "cd3d"]})
    (tmp_path / "mouse.gmt").write_text("a\tlink\tCd3d\tCd3e\n")
    with pytest.raises(
        InputError, match=r"mouse.gmt: none of 1 gene sets .*; 2 genes .* such as 'Cd3d'. Genes are found"
    ):
        enrich_gene_sets(graph, tmp_path / "mouse.gmt")
    with pytest.raises(InputError, match="none of 1 gene sets"):
        enrich_gene_sets(make_graph([]), {"a": ["G0", "G1"]})
    for sets, message in ((["G0"], "sets must be a mapping"), ({"a": "G0"}, "the genes of the set 'a' must be a list")):
        with pytest.raises(InputError, match=message):
            enrich_gene_sets(graph, sets)


def test_cohesion_of_genes_without_partners_and_of_nothing():
    graph = make_graph([(2, 3)])
    assert str(set_cohesion(graph, ["G8"])) == "no gene of the set has a partner"
    with pytest.raises(InputError, match="the gene set is empty"):
        set_cohesion(graph, [])
    with pytest.raises(InputError, match="no gene 'G99'"):
        set_cohesion(graph, ["G99"])


def test_ribosomal_genes_by_symbol():
    yes = ["RPL3", "RPS6", "RPLP0", "RPSA", "RPL10A", "RPS4X", "RPS4Y1", "RPL36AL", "RPL22L1", "RPS27L", "Rpl13a"]
    no = ["RPS6KA1", "RPS19BP1", "RPL7P9", "RPSAP58", "RPL34-AS1", "MRPL13", "RPN1", "RPL17-C18orf32"]
    ids = [f"ENSG{i}" for i in range(len(yes + no))]
    vocabulary = Vocabulary(("<pad>", "<mask>", *ids), dict(zip(ids, yes + no, strict=True)))
    assert ribosomal_genes(vocabulary).tolist() == list(range(2, 2 + len(yes)))


def test_ribosomal_genes_are_each_others_partners_in_blood_cells(data_folder, tmp_path):
    pytest.importorskip("anndata")
    dictionaries = data_folder / "geneformer"
    vocabulary = Vocabulary.from_token_dictionary(
        dictionaries / "token_dictionary.pkl", dictionaries / "gene_name_id_dict.json"
    )
    medians = dictionaries / "gene_median_dictionary.pkl"
    tokenize(data_folder / "pbmc3k.h5ad", tmp_path / "cells.npz", vocabulary, medians, progress=False)
    graph = build_dependency_graph(read_corpus(tmp_path / "cells.npz"), progress=False)
    found = set_cohesion(graph, ribosomal_genes(vocabulary))
    assert found.genes > 60
    assert found.share > 0.5
    assert found.enrichment > 2
    # MSigDB's hallmarks, genes by symbol: those of immune cells go together in blood, those of muscle do not.
    enriched = enrich_gene_sets(graph, data_folder / "genesets" / "h.all.v7.0.symbols.gmt")
    q = dict(zip(enriched.names, enriched.q_value, strict=True))
    assert q["HALLMARK_ALLOGRAFT_REJECTION"] < 1e-6
    assert q["HALLMARK_INTERFERON_ALPHA_RESPONSE"] < 0.05
    assert q["HALLMARK_MYOGENESIS"] > 0.01
    assert 0 < len(enriched.unknown) < 0.1 * enriched.n_named
    # Against rewired graphs, counted by products of sparse matrices.
    named = read_gene_sets(data_folder / "genesets" / "h.all.v7.0.symbols.gmt")
    known = graph.vocabulary.tokens_by_name
    inside = np.zeros((graph.vocabulary.size, len(enriched.names)), np.float32)
    for i, name in enumerate(enriched.names):
        inside[[known[gene] for gene in named[name] if gene in known], i] = 1
    random = [(inside * (rewired(graph, seed).to_scipy(None) @ inside)).sum(axis=0) / 2 for seed in range(60)]
    mean, sd = np.mean(random, axis=0), np.std(random, axis=0, ddof=1)
    often = enriched.expected > 1
    assert often.sum() > 20
    assert np.all(np.abs(enriched.expected - mean)[often] < 4.5 * enriched.sd[often] / np.sqrt(60))
    assert np.mean(sd[often] / enriched.sd[often]) == pytest.approx(1, abs=0.05)
