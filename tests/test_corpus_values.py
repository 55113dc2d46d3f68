"""Corpora whose tokens have values: written, read in every form, gathered, and collated."""

from __future__ import annotations

import pickle

import anndata
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader

from corrmask_fast import (
    Corpus,
    CorpusDataset,
    CorpusWriter,
    DataCollatorForCorrMask,
    DataCollatorForValues,
    InputError,
    PaddingCollator,
    RandomMasker,
    RankEncoder,
    Vocabulary,
    build_dependency_graph,
    read_corpus,
    stream_corpus,
    tokenize,
    write_corpus,
)
from corrmask_fast.cells.segments import Segment

V1 = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(40))))
V2 = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *(f"G{i}" for i in range(40))))
LOW = 4


def rows_of(corpus):
    return [
        (corpus.tokens[a:b].tolist(), corpus.values[a:b].tolist())
        for a, b in zip(corpus.indptr[:-1], corpus.indptr[1:], strict=True)
    ]


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    return [(LOW + rng.permutation(36)[:n], rng.poisson(3, n).astype(np.float32)) for n in (3, 0, 20, 1, 36, 7)]


def expected(cells):
    return [(ids.tolist(), values.tolist()) for ids, values in cells]


@pytest.mark.parametrize("vocabulary", [V1, V2], ids=["V1", "V2"])
@pytest.mark.parametrize("suffix", [".npz", ".dataset"])
def test_values_are_written_and_read(tmp_path, cells, vocabulary, suffix):
    corpus = read_corpus([{"input_ids": ids, "values": values} for ids, values in cells], vocabulary)
    assert corpus.has_values
    assert rows_of(corpus) == expected(cells)
    path = tmp_path / f"cells{suffix}"
    write_corpus(corpus, path, chunk_cells=2)
    stored = read_corpus(path)
    assert stored.has_values
    assert "values" not in stored.obs
    assert rows_of(stored) == expected(cells)
    for chosen in ([4, 0, 1], [2]):
        want = [expected(cells)[i] for i in chosen]
        for part in (
            stored.take(np.array(chosen)),
            stored.select(np.array(chosen)),
            pickle.loads(pickle.dumps(stored)),
        ):
            some = part if len(part) == len(chosen) else part.take(np.array(chosen))
            assert rows_of(some) == want


def test_values_follow_their_tokens_where_cells_are_stripped_cut_and_thinned():
    tokens = np.array([2, 9, 8, 9, 3, 0, 7, 6], np.int32)  # <cls> 9 8 9 <eos> | <pad> 7 6
    values = np.arange(8, dtype=np.float32)
    stored = Corpus.from_segments([Segment(np.array([0, 5, 8]), tokens, values)], V2)
    with pytest.warns(UserWarning, match="gene G5 "):
        assert rows_of(stored) == [([9, 8], [1, 2]), ([7, 6], [6, 7])]
    cut = Corpus.from_segments([Segment(np.array([0, 5, 8]), tokens, values)], V2, max_length=1)
    assert rows_of(cut) == [([9], [1]), ([7], [6])]
    again = stored.gather_with_values(np.array([1, 0]))
    assert [part.tolist() for part in again] == [[0, 2, 4], [7, 6, 9, 8], [6, 7, 1, 2]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.int16())], ids=str)
def test_arrow_and_parquet_hold_values_of_any_type(tmp_path, cells, kind):
    columns = {
        "input_ids": [ids.tolist() for ids, _ in cells],
        "values": pa.array([v.tolist() for _, v in cells], kind),
    }
    table = pa.table(columns)
    pyarrow.parquet.write_table(table, tmp_path / "cells.parquet", row_group_size=4)
    assert rows_of(read_corpus(tmp_path / "cells.parquet", V1)) == expected(cells)
    sliced = pa.concat_tables([table.slice(2, 3), table.slice(0, 2)])
    dataset = datasets.Dataset(datasets.table.InMemoryTable(sliced)).select([4, 0])
    assert rows_of(read_corpus(dataset, V1)) == [expected(cells)[1], expected(cells)[2]]


def test_tokenize_writes_counts_beside_all_genes(tmp_path):
    names = [f"G{i}" for i in range(40)]
    counts = np.random.default_rng(0).poisson(0.7, (30, 40)).astype(np.float32)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=names))
    medians = {name: 1.0 + i % 3 for i, name in enumerate(names)}
    for inputs, output in ((adata, "one.dataset"), ([adata, adata.copy()], "two.dataset"), (adata, "one.npz")):
        tokenize(inputs, tmp_path / output, V2, medians, values=True, progress=False)
    one, two = read_corpus(tmp_path / "one.dataset"), read_corpus(tmp_path / "two.dataset")
    for row, (ids, values) in zip(counts, rows_of(one), strict=True):
        assert dict(zip(ids, values, strict=True)) == {4 + i: float(n) for i, n in enumerate(row) if n}
    assert rows_of(two) == rows_of(one) * 2
    assert rows_of(read_corpus(tmp_path / "one.npz")) == rows_of(one)
    ranks = tmp_path / "ranks.dataset"
    tokenize(adata, ranks, V2, medians, progress=False)
    assert read_corpus(ranks).tokens.tolist() == one.tokens.tolist()  # in the order of the ranks
    assert not read_corpus(ranks).has_values


def test_batches_from_disk_are_those_straight_from_counts(tmp_path):
    names = [f"G{i}" for i in range(40)]
    counts = np.random.default_rng(1).poisson(0.7, (30, 40))
    adata = anndata.AnnData(counts.astype(np.float32), var=pd.DataFrame(index=names))
    adata.obs["donor"] = np.arange(30)
    tokenize(
        adata, tmp_path / "cells.dataset", V2, dict.fromkeys(names, 1.0), values=True, obs=["donor"], progress=False
    )
    masker = RandomMasker(V2, mlm_probability=0.3, mask_replace_prob=1.0, random_replace_prob=0.0)
    stored = DataCollatorForValues.scgpt(masker, max_length=20, columns=("input_ids", "values"))
    straight = DataCollatorForValues.scgpt(masker, max_length=20, encoder=RankEncoder(V2, None, names))
    for collator in (stored, straight):
        collator.set_epoch(1)
    dataset = CorpusDataset(read_corpus(tmp_path / "cells.dataset"), values=True, columns=("donor",))
    found = list(DataLoader(dataset, batch_size=10, collate_fn=stored, num_workers=2))
    for i, batch in enumerate(found):
        want = straight(counts[10 * i : 10 * i + 10])
        assert batch.pop("donor").tolist() == list(range(10 * i, 10 * i + 10))
        assert batch.keys() == want.keys()
        assert all(torch.equal(batch[name], want[name]) for name in want)
    assert dict(dataset[3]).keys() == {"input_ids", "values", "donor"}
    assert dataset.lengths.tolist() == (counts > 0).sum(axis=1).tolist()
    plain = CorpusDataset(read_corpus(tmp_path / "cells.dataset"))
    assert "values" not in plain[3]
    assert DataCollatorForCorrMask(masker)(plain[[0, 1]])["input_ids"].shape[0] == 2


@pytest.mark.parametrize("source", ["parquet", "parquet and donors", "folder", "iterator", "datasets"])
def test_streams_hand_out_values(tmp_path, cells, source):
    rows = [{"input_ids": ids, "values": values, "donor": i} for i, (ids, values) in enumerate(cells)]
    with CorpusWriter(tmp_path / "cells.dataset", V2) as writer:
        writer.write_cells((row for row in rows), chunk_cells=4)
    assert rows_of(read_corpus(tmp_path / "cells.dataset")) == expected(cells)
    table = pa.table({name: pa.array([row[name] for row in rows]) for name in rows[0]})
    pyarrow.parquet.write_table(table, tmp_path / "cells.parquet", row_group_size=4)
    columns = () if source == "parquet" else ("donor",)
    given = {
        "folder": tmp_path / "cells.dataset",
        "iterator": lambda: iter(rows),
        "datasets": datasets.Dataset(table).to_iterable_dataset(),
    }.get(source, tmp_path / "cells.parquet")
    stream = stream_corpus(given, V2, values=True, columns=columns)
    found = list(stream)
    assert [(row["input_ids"].tolist(), row["values"].tolist()) for row in found] == expected(cells)
    assert [row["donor"] for row in found if columns] == ([*range(6)] if columns else [])
    masker = RandomMasker(V2, mlm_probability=0.5, mask_replace_prob=1.0, random_replace_prob=0.0)
    collator = DataCollatorForValues.scgpt(masker, columns=("input_ids", "values"))
    collator.set_epoch(0)
    dataset = CorpusDataset(read_corpus(tmp_path / "cells.dataset"), values=True, columns=columns)
    for i, batch in enumerate(DataLoader(stream, batch_size=4, collate_fn=collator)):
        want = collator(dataset[4 * i : 4 * i + 4])
        assert all(torch.equal(batch[name], want[name]) for name in want)
    shuffled = stream_corpus(given, V2, values=True, shuffle_buffer=4)
    assert sorted((row["input_ids"].tolist(), row["values"].tolist()) for row in shuffled) == sorted(expected(cells))
    assert "values" not in next(iter(stream_corpus(given, V2)))


def test_a_stream_without_values_says_so(tmp_path):
    pyarrow.parquet.write_table(pa.table({"input_ids": [[4, 5]]}), tmp_path / "cells.parquet")
    for source in (tmp_path / "cells.parquet", lambda: [[4, 5]]):
        with pytest.raises(InputError, match="has no values; cells need a column 'values' of lists"):
            list(stream_corpus(source, V1, values=True))


def test_masks_of_ids_are_the_same_for_a_batch_and_its_cells(cells):
    """Values are a part of the cell (SPEC 3) however it is handed over, and come along."""
    corpus = read_corpus([{"input_ids": ids, "values": values} for ids, values in cells], V1)
    dataset = CorpusDataset(corpus, values=True)
    for collator in (DataCollatorForCorrMask(RandomMasker(V1)), PaddingCollator(V1)):
        if isinstance(collator, DataCollatorForCorrMask):
            collator.set_epoch(0)
        batch, single = collator(dataset[:]), collator([dataset[i] for i in range(len(cells))])
        assert batch.keys() == single.keys() >= {"values"}
        assert all(torch.equal(batch[name], single[name]) for name in batch)


def test_a_graph_of_a_corpus_with_values_is_that_of_its_tokens():
    rng = np.random.default_rng(0)
    cells = [rng.permutation(36)[:20] + LOW for _ in range(80)]
    how = {"min_presence": 5, "min_cooccurrence": 5, "progress": False}
    plain = build_dependency_graph(read_corpus(cells, V1), **how)
    valued = build_dependency_graph(read_corpus([{"input_ids": c, "values": c * 1.0} for c in cells], V1), **how)
    assert plain.n_edges > 0
    assert plain.fingerprint == valued.fingerprint


def test_values_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"values of cell 1 must be 2 numbers, one a token; got int64 of \(3,\)"):
        read_corpus([{"input_ids": [4], "values": [1]}, {"input_ids": [4, 5], "values": [1, 2, 3]}], V1)
    with pytest.raises(InputError, match="values must stand beside the tokens of every cell, or of none; 1 cells"):
        read_corpus([{"input_ids": [4], "values": [1]}, {"input_ids": [4, 5]}], V1)
    with pytest.raises(InputError, match="values must be one number for each of 2 tokens; got <U1 of shape"):
        Corpus(np.array([0, 2]), np.array([4, 5]), V1, values=np.array(["a", "b"]))
    with pytest.raises(InputError, match=r"values of cell 0 must be 1 numbers, one a token; .*inhomogeneous"):
        read_corpus([{"input_ids": [4], "values": [[1], [2, 3]]}], V1)
    with pytest.raises(InputError, match=r"values of cell 0 must be numbers that float32 holds; got 1e\+39"):
        read_corpus([{"input_ids": [4], "values": [1e39]}], V1)
    with (
        pytest.raises(InputError, match=r"values of cell 1 must be 2 numbers.*got int64 of \(1,\); rename"),
        CorpusWriter(tmp_path / "odd.dataset", V1) as writer,
    ):
        writer.write_cells([{"input_ids": [4], "values": [1]}, {"input_ids": [4, 5], "values": [1]}], chunk_cells=1)
    with pytest.raises(InputError, match="the corpus has no values; write it with them"):
        CorpusDataset(read_corpus([[4]], V1), values=True)
    columns = {"input_ids": [[4, 5], [6]], "values": [[1.0, 2.0], [1.0, 2.0]]}
    with pytest.raises(InputError, match=r"a cell has 2 values and 1 input_ids; if it is another one: .*rename_column"):
        read_corpus(datasets.Dataset.from_dict(columns), V1)
    with pytest.raises(InputError, match="the column 'values' must hold lists of numbers"):
        read_corpus(datasets.Dataset.from_dict({"input_ids": [[4]], "values": [["x"]]}), V1)
    with pytest.raises(InputError, match="the column 'values' holds missing values"):
        read_corpus(datasets.Dataset.from_dict({"input_ids": [[4], [5]], "values": [[1.0], [None]]}), V1)
    np.savez(tmp_path / "odd.npz", indptr=[0, 2], tokens=[4, 5], values=[1.0])
    with pytest.raises(InputError, match="values must be one number for each of 2 tokens"):
        read_corpus(tmp_path / "odd.npz", V1)
    with CorpusWriter(tmp_path / "cells.npz", V1) as writer:
        writer.write(np.array([0, 1]), np.array([4]), values=np.array([1.0]))
        with pytest.raises(InputError, match="values must be given with every chunk, or with none"):
            writer.write(np.array([0, 1]), np.array([4]))
        with pytest.raises(InputError, match="values must be one number for each of 1 tokens; got 2"):
            writer.write(np.array([0, 1]), np.array([4]), values=np.ones(2))
    assert read_corpus(tmp_path / "cells.npz").values.tolist() == [1.0]
