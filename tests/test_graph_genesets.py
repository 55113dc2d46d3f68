"""Gene sets against a graph: worked by hand, and chance against graphs rewired with the same degrees."""

from __future__ import annotations

import numpy as np
import pytest

from corrmask_fast import (
    DependencyGraph,
    InputError,
    Vocabulary,
    build_dependency_graph,
    read_corpus,
    rewired,
    tokenize,
)
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
