"""Edges at which cells were read wrongly without a word: masks of cells, lost chunks, times, medians given twice."""

from __future__ import annotations

from datetime import datetime

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import GENES, NAMES, cells_of, some_counts, tokenize, write_h5ad

from corrmask_fast import CorpusDataset, InputError, Vocabulary, read_corpus, write_corpus
from corrmask_fast.cells.corpus_io import CorpusWriter
from corrmask_fast.cells.medians import read_medians

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")

FIVE = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))


def test_cells_are_chosen_by_masks_and_integers_alone():
    corpus = read_corpus([[2], [3], [4], [2, 3]], FIVE)
    mask = np.array([False, True, False, True])
    for chosen in (corpus.select(mask), corpus.take(mask), corpus.select([1, 3]), corpus.take(np.int8([1, 3]))):
        assert cells_of(chosen) == [[3], [2, 3]]
    assert CorpusDataset(corpus).__getitems__(mask)[0]["input_ids"].tolist() == [3]
    for bad in (np.array([1.0, 3.0]), ["a"], np.array([True]), np.ones((2, 2), int)):
        with pytest.raises(InputError, match="cells are chosen by an integer, a slice, or a list"):
            corpus.select(bad)
    for outside in ([4], np.array([-5])):
        with pytest.raises(InputError, match="cell index must be in"):
            corpus.take(np.array(outside, np.int32))


@pytest.mark.parametrize("lost", ["X/indices", "X/data", "obs/_index", "var/_index"])
def test_a_store_that_lost_a_chunk_is_refused(tmp_path, lost):
    counts = sp.csr_matrix(np.tile(some_counts(), (400, 1)))
    cells = anndata.AnnData(counts, var=pandas.DataFrame(index=list(NAMES)))
    with anndata.settings.override(zarr_write_format=2):
        cells.write_zarr(tmp_path / "cells.zarr")
    chunks = [path for path in (tmp_path / "cells.zarr" / lost).iterdir() if not path.name.startswith(".")]
    assert tokenize(tmp_path / "cells.zarr", tmp_path / "out.npz")[1].n_cells > 20_000
    if lost == "X/data":
        assert len(chunks) > 1  # of a single one nothing would be left, which is told otherwise
    max(chunks, key=lambda path: path.name).unlink()
    with pytest.raises(
        InputError, match=r"is damaged: a part of (its sparse counts|the index of (obs|var)) is missing"
    ):
        tokenize(tmp_path / "cells.zarr", tmp_path / "out.npz")


@pytest.mark.parametrize("output", ["out.npz", "out.dataset"])
def test_times_stay_times(tmp_path, output):
    pytest.importorskip("datasets")
    times = np.array(["2020-01-01", "NaT", "2021-05-06T07:08:09"], "datetime64[ns]")
    with CorpusWriter(tmp_path / output, FIVE) as writer:
        writer.write(np.array([0, 1, 2, 3]), np.array([2, 3, 4]), {"when": times})
    expected = [datetime(2020, 1, 1), None, datetime(2021, 5, 6, 7, 8, 9)]  # noqa: DTZ001
    assert read_corpus(tmp_path / output).obs["when"].tolist() == expected


def test_texts_of_any_length(tmp_path):
    pytest.importorskip("datasets")
    corpus = read_corpus([[2], [3]], FIVE)
    corpus.obs = {"note": np.array(["x", "y" * 100_000], object)}
    with pytest.raises(
        InputError, match=r"has a text of 100000 characters, .*; .npz takes 1000, and drops .*; write a folder"
    ):
        write_corpus(corpus, tmp_path / "out.npz")
    write_corpus(corpus, tmp_path / "out.dataset")
    stored = read_corpus(tmp_path / "out.dataset").obs["note"]
    assert stored.dtype == object
    assert stored.tolist() == corpus.obs["note"].tolist()
    corpus.obs = {"note": np.array(["x", "y\0z\0"], object)}
    with pytest.raises(
        InputError, match=r"has a text of 4 characters, .*; .npz takes 1000, and drops a NUL at the end;"
    ):
        write_corpus(corpus, tmp_path / "nul.npz")
    write_corpus(corpus, tmp_path / "nul.dataset")
    assert read_corpus(tmp_path / "nul.dataset").obs["note"].tolist() == ["x", "y\0z\0"]
    corpus.obs = {"note": np.array(["x", "\ud800"], object)}
    with pytest.raises(InputError, match="obs column 'note' is not a readable column of numbers or text"):
        write_corpus(corpus, tmp_path / "other.dataset")


def test_a_median_by_id_comes_before_one_by_symbol():
    for order in (1, -1):
        given = dict([(NAMES[0], 2.0), ("SYM0", 5.0), (f"{NAMES[1]}", 3.0)][::order])
        assert read_medians(given, GENES)[2:4].tolist() == [2.0, 3.0]
    versioned = Vocabulary(("<pad>", "<mask>", "ENSG00000000005"))
    assert read_medians({"ENSG00000000005.12": 4.0}, versioned)[2] == 4.0
    for bad in (True, 1j, 10**400):
        with pytest.raises(InputError, match="the median of a gene must be a finite number above 0"):
            read_medians({NAMES[0]: bad}, GENES)


def test_columns_are_named_in_a_list(tmp_path):
    path = write_h5ad(tmp_path / "cells.h5ad", sp.csr_matrix(some_counts()), obs={"t": np.arange(60)})
    for bad in ("t", None, 5):
        with pytest.raises(InputError, match="obs must be a list of names of columns"):
            tokenize(path, tmp_path / "out.npz", obs=bad)
    twice = pandas.DataFrame([[1, 2]] * 60, columns=["t", "t"], index=[f"c{i}" for i in range(60)])
    cells = anndata.AnnData(sp.csr_matrix(some_counts()), obs=twice, var=pandas.DataFrame(index=list(NAMES)))
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["column-order"] = ["t", "t"]
    for source in (cells, path):
        with pytest.raises(InputError, match="has the obs column 't' twice; rename one"):
            tokenize(source, tmp_path / "out.npz", obs=["t"])


def test_memory_does_not_follow_cells_that_are_deep_in_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr("corrmask_fast.cells.counts.CHUNK_ENTRIES", 300)
    counts = np.zeros((400, 12), np.float32)
    counts[:100] = 1 + np.arange(12)  # cells sorted by depth
    counts[100:, 3] = 1
    from corrmask_fast.cells.counts import Counts

    for i, layout in enumerate((sp.csr_matrix, sp.csc_matrix)):
        with Counts(write_h5ad(tmp_path / f"{i}.h5ad", layout(counts))) as file:
            sizes = [rows.counts.size for _, rows in file.chunks()]
        assert sum(sizes) == np.count_nonzero(counts)
        assert max(sizes) <= 300
