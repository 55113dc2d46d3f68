"""The demo end to end at a small size, and what it measures with: gene sets, and today's input path."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from corrmask_fast import InputError, Vocabulary
from corrmask_fast.genesets import ribosomal_genes, set_cohesion
from corrmask_fast.stock import StockPreCollator, stock_collator

VOCABULARY = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))))


def make_graph(pairs):
    edges = sorted({edge for u, v in pairs for edge in ((int(u), int(v)), (int(v), int(u)))})
    degrees = np.bincount([u for u, _ in edges], minlength=VOCABULARY.size)
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    return SimpleNamespace(indptr=indptr, indices=np.array([v for _, v in edges], np.int32), vocabulary=VOCABULARY)


def test_cohesion_worked_by_hand():
    # Set {2, 3, 4}: edges 2-3 and 3-9; beside it 7-8 and 8-9. Degrees: 2:1 3:2 7:1 8:2 9:2, sum 8.
    found = set_cohesion(make_graph([(2, 3), (3, 9), (7, 8), (8, 9)]), [2, 3, 4])
    assert (found.genes, found.partners) == (2, 3)
    assert found.share == 2 / 3
    assert found.chance == pytest.approx((1 * 2 / 7 + 2 * 1 / 6) / 3)
    assert found.enrichment == found.share / found.chance
    assert "66.7 % of the 3 partners of 2 genes" in str(found)


def test_chance_is_that_of_graphs_rewired_with_the_same_degrees():
    rng = np.random.default_rng(0)
    graph = make_graph([rng.choice(40, 2, replace=False) + 2 for _ in range(150)])
    inside = np.zeros(VOCABULARY.size, bool)
    inside[2:12] = True
    stubs = np.repeat(np.arange(VOCABULARY.size), np.diff(graph.indptr))
    shares = []
    for _ in range(2000):
        a, b = rng.permutation(stubs).reshape(2, -1)
        a, b = a[a != b], b[a != b]
        shares.append(2 * np.sum(inside[a] & inside[b]) / (np.sum(inside[a]) + np.sum(inside[b])))
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(set_cohesion(graph, range(2, 12)).chance - np.mean(shares)) < 5 * error


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


def test_the_stock_path_is_the_stock_path():
    pytest.importorskip("transformers")
    cells = [{"input_ids": list(range(2, 42))}, {"input_ids": [5, 3]}, {"input_ids": []}]
    batch = stock_collator(VOCABULARY)(cells)
    ids, labels, attention = (batch[name].numpy() for name in ("input_ids", "labels", "attention_mask"))
    assert attention.sum(1).tolist() == [40, 2, 0]
    assert np.all(ids[attention == 0] == VOCABULARY.pad_token_id)
    assert np.all(labels[attention == 0] == -100)
    masked = labels != -100
    original = np.zeros((3, 40), int)
    for row, cell in enumerate(cells):
        original[row, : len(cell["input_ids"])] = cell["input_ids"]
    assert np.array_equal(labels[masked], original[masked])
    assert np.array_equal(ids[~masked], original[~masked])
    assert StockPreCollator(VOCABULARY).pad(cells, pad_to_multiple_of=64)["input_ids"].shape == (3, 64)
