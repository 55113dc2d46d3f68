"""The PMI table: equal to plain Python to the bit, whatever the memory and the threads; its file; bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from corrmask_fast import InputError, PMITable, Vocabulary, read_corpus, reference_pmi, set_num_threads


def found(table):
    rows = np.repeat(np.arange(table.vocabulary.size), np.diff(table.indptr))
    return dict(zip(zip(rows.tolist(), table.indices.tolist(), strict=True), table.npmi.tolist(), strict=True))


def cells_of(corpus):
    return [corpus.tokens[a:b].tolist() for a, b in zip(corpus.indptr[:-1], corpus.indptr[1:], strict=True)]


@pytest.mark.parametrize("min_count", [1, 2, 5, 1000])
@pytest.mark.parametrize("memory", [1, 700, 2**30])
def test_equals_plain_python_to_the_bit(make_corpus, min_count, memory):
    corpus = make_corpus(150, 25, seed=3)
    expected = reference_pmi.pmi_table(cells_of(corpus), min_count=min_count)
    table = PMITable.from_corpus(corpus, min_count=min_count, memory=memory, progress=False)
    assert found(table) == expected
    assert min_count == 1000 or len(expected) > 20
    assert (table.counts >= min_count).all()


@pytest.mark.parametrize(
    ("size", "followers"),
    [
        (200, {2: range(2, 200), 3: [], 4: [2], 5: range(2, 19), 199: [199, 2]}),
        (3000, {7: range(100, 3000, 64), 8: range(2, 2900), 9: [2, 3]}),  # as many low bits alike as may be
        (70_000, {2: range(2, 70_000, 999), 69_999: [1, 65_537, 2, 65_538], 5: [65_540], 6: [4], 8: [7, 65_543]}),
    ],
)
def test_a_pair_is_found_exactly_where_it_is_in_the_table(size, followers):
    from corrmask_fast.kernels.pmi import pair_slots
    from corrmask_fast.masking.engine.tables import table_of_pairs

    indptr = np.cumsum([0, *(len(followers.get(u, ())) for u in range(size))])
    indices = np.array([v for u in sorted(followers) for v in sorted(followers[u])], np.int32)
    lookup = table_of_pairs(indptr, indices, "").lookup
    asked = np.unique(np.concatenate([np.arange(0, size, 1 + size // 500), indices, indices ^ 1, indices % 65_536]))
    for u in (*followers, 0, 1, 77):
        found = [int(v) for v in asked if v < size and pair_slots(np.uint64(u), np.uint64(v), size, lookup)]
        assert found == sorted(followers.get(u, ())), u


def test_the_number_of_threads_changes_nothing(make_corpus):
    corpus = make_corpus(100, 40, seed=1)
    tables = []
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            tables.append(PMITable.from_corpus(corpus, min_count=3, memory=3000, progress=False))
    finally:
        set_num_threads(None)
    assert found(tables[0]) == found(tables[1])
    assert np.array_equal(tables[0].counts, tables[1].counts)


def test_by_hand():
    genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    table = PMITable.from_corpus(read_corpus([[2, 3], [2, 3, 4], [4]], genes), min_count=1, progress=False)
    assert found(table).keys() == {(2, 3), (3, 4)}
    assert table.counts.tolist() == [2, 1]
    assert table.npmi_of("A", "B") == math.log(2 / 3 / (2 / 6 * (2 / 6))) / -math.log(2 / 3)
    assert table.npmi_of("B", "A") is None
    assert [pair[:2] for pair in table.strongest()] == [("A", "B"), ("B", "C")]
    indptr, indices = table.at_least(2.0)
    assert (indptr.tolist(), indices.tolist()) == ([0, 0, 0, 1, 1, 1], [3])


def test_the_only_pair_has_one():
    genes = Vocabulary(("<pad>", "<mask>", "A", "B"))
    table = PMITable.from_corpus(read_corpus([[2, 3]] * 60, genes), progress=False)
    assert table.npmi.tolist() == [1.0]
    assert table.params["min_count"] == 50


def test_cells_of_one_gene_have_no_pairs():
    genes = Vocabulary(("<pad>", "<mask>", "A", "B"))
    table = PMITable.from_corpus(read_corpus([[2], [3], []], genes), min_count=1, progress=False)
    assert table.n_pairs == 0
    assert table.summary()["pairs"] == 0
    assert repr(table) == "PMITable(0 pairs of 2 genes)"


def test_cells_are_cut_as_the_corpus_cuts_them(make_corpus):
    corpus = make_corpus(80, 30, seed=2, max_length=7)
    table = PMITable.from_corpus(corpus, min_count=1, progress=False)
    assert table.counts.sum() == np.maximum(np.diff(corpus.indptr) - 1, 0).sum() == table.params["n_pairs_counted"]


def test_a_sample_of_cells(make_corpus):
    corpus = make_corpus(90, 20, seed=5)
    sample = corpus.take(corpus.sample_rows(30, seed=4))
    ours = PMITable.from_corpus(corpus, min_count=2, n_cells=30, seed=4, progress=False)
    assert found(ours) == found(PMITable.from_corpus(sample, min_count=2, progress=False))


def test_the_file(make_corpus, tmp_path):
    table = PMITable.from_corpus(make_corpus(100, 25), min_count=2, progress=False)
    for name in ("a", "b"):
        table.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = PMITable.load(tmp_path / "a.safetensors")
    assert found(loaded) == found(table)
    assert np.array_equal(loaded.counts, table.counts)
    assert loaded.params == table.params
    assert loaded.vocabulary.names == table.vocabulary.names


def test_files_that_are_none(make_corpus, tmp_path):
    from corrmask_fast import DependencyGraph

    path = tmp_path / "t.safetensors"
    with pytest.raises(InputError, match=r"no PMI table file at .*; build one with `corrmask-fast pmi build`"):
        PMITable.load(path)
    PMITable.from_corpus(make_corpus(100, 25), min_count=2, progress=False).save(path)
    with pytest.raises(InputError, match="but no dependency graph of this project"):
        DependencyGraph.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="not a readable PMI table file"):
        PMITable.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="was altered or damaged"):
        PMITable.load(path)
    genes = Vocabulary(("<pad>", "<mask>", "A", "B"))
    DependencyGraph.from_edges([("A", "B")], genes).save(path)
    with pytest.raises(InputError, match="is a safetensors file, but no PMI table of this project"):
        PMITable.load(path)


@pytest.mark.parametrize("options", [{"min_count": 0}, {"min_count": 1.5}, {"n_cells": 0}, {"memory": 0}])
def test_bad_options(make_corpus, options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be an integer"):
        PMITable.from_corpus(make_corpus(5, 5), progress=False, **options)


def test_an_empty_corpus():
    genes = Vocabulary(("<pad>", "<mask>", "A", "B"))
    with pytest.raises(InputError, match="cannot count the pairs of an empty corpus"):
        PMITable.from_corpus(read_corpus([], genes), progress=False)
