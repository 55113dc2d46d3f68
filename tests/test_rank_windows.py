"""Correlated genes close to each other in rank: hand-worked, equal to plain Python, beside controls."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrmask_fast import DependencyGraph, InputError, correlated_windows, read_corpus, set_num_threads
from corrmask_fast.audit.rank_windows import (
    RANKED,
    REWIRED,
    SHUFFLED,
    save_windows_csv,
    windows_beside_controls,
    windows_table,
)
from corrmask_fast.kernels.windows import N_COUNTS, count_windows
from corrmask_fast.reference_windows import count_windows as plain_windows
from corrmask_fast.testing import make_graph, make_vocabulary

VOCABULARY = make_vocabulary(12)
COUNTS = ("tokens", "linked", "near", "windows", "with_pair")


def neighbors_of(graph):
    return {g: graph.neighbors(g)[0].tolist() for g in range(*graph.vocabulary.gene_range)}


def counts_of(shares):
    return tuple(getattr(shares, name) for name in COUNTS)


def test_by_hand():
    # A B C D E F with A-C and B-F; near within 3: A and C. Windows of 3: ABC holds A-C; BCD, CDE, DEF hold none.
    graph = DependencyGraph.from_edges([("G0", "G2"), ("G1", "G5")], VOCABULARY)
    shares = correlated_windows(read_corpus([[2, 3, 4, 5, 6, 7]], VOCABULARY), graph, width=3, progress=False)
    assert counts_of(shares) == (6, 4, 2, 4, 1)
    # Within 4: B and F too; windows of 4: ABCD alone (B-F needs five).
    shares = correlated_windows(read_corpus([[2, 3, 4, 5, 6, 7]], VOCABULARY), graph, width=4, progress=False)
    assert counts_of(shares) == (6, 4, 4, 3, 1)


@given(
    st.lists(st.lists(st.sampled_from([*range(14), -3, 99]), max_size=13), max_size=5),
    st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14),
    st.integers(2, 7),
)
@settings(max_examples=200, deadline=None)
def test_equals_plain_python(cells, pairs, width):
    # Genes may stand twice, and lie outside the vocabulary; special tokens have no neighbours.
    graph = DependencyGraph.from_edges([(f"G{a}", f"G{b}") for a, b in pairs], VOCABULARY)
    counts = np.zeros(N_COUNTS, np.int64)
    indptr = np.concatenate([[0], np.cumsum([len(cell) for cell in cells])]).astype(np.int64)
    tokens = np.array([token for cell in cells for token in cell], np.int64)
    count_windows(indptr, tokens, graph.indptr, graph.indices, width, counts)
    assert tuple(counts.tolist()) == plain_windows(cells, neighbors_of(graph), width)


@pytest.fixture(scope="module")
def corpus(make_corpus):
    return make_corpus(300, 60)


@pytest.fixture(scope="module")
def graph(corpus):
    return make_graph(corpus.vocabulary, degree=6, hub=False)


def test_a_corpus_equals_plain_python_for_any_threads_and_chunks(corpus, graph, monkeypatch):
    cells = [corpus.tokens[a:b].tolist() for a, b in zip(corpus.indptr[:-1], corpus.indptr[1:], strict=True)]
    expected = plain_windows(cells, neighbors_of(graph), 5)
    for threads, chunk in ((1, 4096), (3, 4096), (2, 37)):
        monkeypatch.setattr("corrmask_fast.audit.rank_windows.CHUNK_CELLS", chunk)
        set_num_threads(threads)
        try:
            assert counts_of(correlated_windows(corpus, graph, progress=False)) == expected
        finally:
            set_num_threads(None)
    some = correlated_windows(corpus, graph, n_cells=40, seed=2, progress=False)
    chosen = corpus.sample_rows(40, 2).tolist()
    assert counts_of(some) == plain_windows([cells[i] for i in chosen], neighbors_of(graph), 5)


def test_order_matters_and_shuffling_forgets_it():
    # Partners side by side in every cell: every gene is near one; in random order of 60 genes, about 2 · 5 / 59.
    vocabulary = make_vocabulary(60)
    graph = DependencyGraph.from_edges([(f"G{i}", f"G{i + 1}") for i in range(0, 60, 2)], vocabulary)
    rng = np.random.default_rng(0)
    cells = [(2 + 2 * rng.permutation(30)[:, None] + [0, 1]).ravel() for _ in range(200)]
    ranked, other, shuffled = windows_beside_controls(read_corpus(cells, vocabulary), graph, progress=False)
    assert [each.name for each in (ranked, other, shuffled)] == [RANKED, REWIRED, SHUFFLED]
    assert ranked.near_share == 1.0 == ranked.window_share
    # Of 60 places, those within 5 on either side: 10, fewer at the ends: (60 · 10 − 30) / 60 of 59.
    chance = (60 * 10 - 30) / 60 / 59
    assert shuffled.near_share == pytest.approx(chance, abs=0.01)
    assert other.near_share == pytest.approx(chance, abs=0.05)
    assert (shuffled.tokens, shuffled.linked, shuffled.windows) == (ranked.tokens, ranked.linked, ranked.windows)


def test_table_and_csv(corpus, graph, tmp_path):
    shares = windows_beside_controls(corpus, graph, n_cells=100, progress=False)
    table = windows_table(shares)
    assert table.startswith("Correlated genes close in rank: 100 cells")
    assert f"{100 * shares[0].near_share:.2f} %" in table
    save_windows_csv(shares, tmp_path / "windows.csv")
    with (tmp_path / "windows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["order"] for row in rows] == [RANKED, REWIRED, SHUFFLED]
    assert float(rows[0]["window_share"]) == int(rows[0]["with_pair"]) / int(rows[0]["windows"])


def test_no_window_is_no_number(corpus):
    none = DependencyGraph.from_edges([], VOCABULARY)
    shares = correlated_windows(read_corpus([[2, 3], []], VOCABULARY), none, progress=False)
    assert math.isnan(shares.near_share)
    assert math.isnan(shares.window_share)
    assert windows_table([shares]).splitlines()[2].split()[-2:] == ["-", "-"]


def test_bad_input(corpus, graph):
    with pytest.raises(InputError, match=r"width must be an integer >= 2; got 1"):
        correlated_windows(corpus, graph, width=1, progress=False)
    with pytest.raises(InputError, match="empty corpus"):
        correlated_windows(corpus.take(np.arange(0)), graph, progress=False)
    with pytest.raises(InputError, match="different vocabularies"):
        correlated_windows(read_corpus([[2]], VOCABULARY), graph, progress=False)
